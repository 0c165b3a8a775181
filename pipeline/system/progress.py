"""What a person sees of a training run: a moving line and a row for each epoch; without a terminal the rows alone."""

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn


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


class RunsProgress:
    """Shows several training runs at a time: a moving line for each; without a terminal a row for each epoch alone."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(4, min(24, self.console.width - 72))),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "RunsProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def row(self, run: str, epochs: int, title: str, location: str, resumed_after: int) -> "RunProgress":
        """The line of a run that begins or resumes now."""
        resumes = f"; resumes after epoch {resumed_after}" if resumed_after else ""
        self.console.print(f"{title}, {location}{resumes}", soft_wrap=True)
        if run not in self._tasks:
            self._tasks[run] = self._bars.add_task(run, total=epochs, said="")
        self._bars.update(self._tasks[run], completed=resumed_after, said=location, visible=True)
        return RunProgress(self.console, self._bars, self._tasks[run], run, epochs)


class RunProgress:
    """One run's line."""

    def __init__(self, console: Console, bars: Progress, task: TaskID, run: str, epochs: int):
        self._console, self._bars, self._task, self._run, self._epochs = console, bars, task, run, epochs
        self._said = ""

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        self._bars.update(self._task, visible=False)  # of more lines than the terminal has, the last would be cut
        if not self._bars.disable:
            self._console.print(f"{self._run}: {'ended' if kind else 'finished'}{self._said}", soft_wrap=True)

    def steps(self, epoch: int, done: int, steps: int, loss: float) -> None:
        """Moves the line on."""
        self._bars.update(self._task, completed=epoch - 1 + done / steps)

    def epoch(self, row: dict[str, float], epoch_seconds: float, images_per_second: float) -> None:
        """Shows a finished epoch."""
        said = f"val_accuracy {row['val_accuracy']:.4f}  loss {row['loss']:.3f}  {epoch_seconds:.1f} s an epoch"
        self._said = f" after epoch {row['epoch']}/{self._epochs}  {said}"
        self._bars.update(self._task, completed=row["epoch"], said=said)
        if self._bars.disable:
            self._console.print(f"{self._run}: epoch {row['epoch']}/{self._epochs}  {said}", soft_wrap=True)
