"""What a person sees of a training run: a moving line and a row for each epoch; without a terminal the rows alone."""

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class ShownEpochs(Protocol):
    """Where a training run shows how far it is."""

    def steps(self, epoch: int, done: int, steps: int, loss: float) -> None:
        """Steps are done."""

    def epoch(self, row: dict[str, float], epoch_seconds: float, images_per_second: float) -> None:
        """An epoch is finished."""


class TrainingProgress:
    """Shows steps as they are done and a row for each finished epoch.

    Args:
        title: the run's name and what it is.
        epochs: in all.
    """

    def __init__(self, title: str, epochs: int):
        self._console = Console(highlight=False)
        width = self._console.width
        self._epochs = epochs
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(4, min(32, width - 44))),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("epoch 1", total=epochs, completed=0, speed="")
        self._print(title.split(" "), " ")

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
        fields = [
            f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}",
            *(f"{name} {row[name]:.4f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy")),
            f"lr {row['learning_rate']:.4f}",
            f"{epoch_seconds:.1f} s",
            f"{images_per_second:,.0f} images/s",
        ]
        self._print(fields, "  ")

    def _print(self, fields: list[str], gap: str) -> None:
        """Prints fields in one line; on a terminal that is too narrow in several, broken between fields."""
        lines = [fields[0]]
        for field in fields[1:]:
            if self._console.is_terminal and len(lines[-1] + gap + field) > self._console.width:
                lines.append(f"    {field}")
            else:
                lines[-1] += gap + field
        self._console.print("\n".join(lines), soft_wrap=True)
