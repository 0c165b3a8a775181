"""What a person sees of a training: a moving line and a row for each epoch; without a terminal the rows alone."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Shows steps as they are done and a row for each finished epoch.

    Args:
        title: the run's name and what it is.
        epochs: in all.
    """

    def __init__(self, title: str, epochs: int):
        self._console = Console(highlight=False)
        self._epochs = epochs
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("epoch 1", total=epochs, completed=0, speed="")
        self._console.print(title, soft_wrap=True)

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def steps(self, epoch: int, done: int, steps: int, loss: float) -> None:
        """Moves the line on."""
        self._bar.update(
            self._task,
            completed=epoch - 1 + done / steps,
            description=f"epoch {epoch}/{self._epochs}",
            speed=f"loss {loss:.3f}",
        )

    def epoch(self, row: dict[str, float], epoch_seconds: float, images_per_second: float) -> None:
        """Prints a finished epoch."""
        self._console.print(
            f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}  loss {row['loss']:.4f}  "
            f"accuracy {row['accuracy']:.4f}  val_loss {row['val_loss']:.4f}  val_accuracy {row['val_accuracy']:.4f}  "
            f"lr {row['learning_rate']:.4f}  {epoch_seconds:.1f} s  {images_per_second:,.0f} images/s",
            soft_wrap=True,
        )
