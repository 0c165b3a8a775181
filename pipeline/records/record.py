"""What a training left on disk, `results/<run>/`: the record that compare reads and MLflow mirrors."""

import copy
import csv
import hashlib
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.records.files import MAX_BYTES, Content, parse, read, read_json, sha256, write, write_json
from pipeline.system.command import PipelineError, shown
from pipeline.training.cifar10 import TEST_IMAGES, TRAIN_IMAGES

DATA = Path("data/cifar10")
RESULTS = Path("results")
CHECKPOINTS = Path("checkpoints")
TRAINING_FILES = ("history.csv", "training.json")
EVALUATION_FILES = (
    "classes.json",
    "confusion_matrix.png",
    "curves.png",
    "evaluation.json",
    "geometry.json",
    "most_confident_errors.png",
    "probabilities.npz",
    "speed.json",
)
SPLITS = ("train_images", "val_images", "test_images")
ADDED = {  # what older records do not name was off then
    "augment_policy": "none",
    "augment_strength": 0.0,
    "norm_statistics": "moving",
    "teacher": "none",
    "teacher_weight": 0.0,
    "temperature": 1.0,
}
NOT_COMPARABLE = "quick: not comparable with the published figures"

Fraction = Annotated[float, Field(ge=0, le=1)]
Measure = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=1, le=10**15)]
Milliseconds = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]  # since 1970, until the year 9999


class _Row(Content):
    epoch: Count
    loss: Measure
    accuracy: Fraction
    val_loss: Measure
    val_accuracy: Fraction


class EpochLog(Content):
    """When an epoch ended and how fast it was; `weights_digest` is absent from older records."""

    epoch: Count
    ended_ms: Milliseconds
    epoch_seconds: Measure
    images_per_second: Measure
    weights_digest: str = ""


class Training(Content):
    """`training.json`: what was trained, when and where. `params` are flat, as MLflow gets them."""

    record_id: str
    run: str
    status: Literal["running", "finished", "failed", "killed"]
    recipe: str
    model: str
    seed: int
    params: dict[str, str | int | float | bool]
    started_ms: Milliseconds
    ended_ms: Milliseconds | None
    epochs: list[EpochLog]
    environment: dict[str, str | int | float | bool | None]  # commit, device, versions, …
    resumed_after_epochs: list[int] = Field(default_factory=list)
    end_reason: str = ""  # of a failed or killed one

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        return self.model_dump(exclude_defaults=True)


class _Evaluation(Content):
    test_accuracy: Fraction
    test_loss: Measure = 0
    test_accuracy_flip: Fraction = 0
    val_accuracy: Fraction = 0
    val_loss: Measure = 0
    calibration_error: Fraction = 0
    parameters: Count = 1
    multiply_adds: Count | None = None
    epochs: Count = 1
    test_images: Count = TEST_IMAGES


class _Speed(Content):
    evaluated_ms: Milliseconds
    model_sha256: str = ""


@dataclass
class Record:
    """One run. Equal for equal weights: history, evaluation. Never equal: training, speed.

    Attributes:
        folder: where the files are.
        training: what was trained, when and where; times in ms since 1970 (`…_ms`).
        history: `history.csv`: one row an epoch; fractions 0..1.
        evaluation: `evaluation.json`, empty before evaluate.
        speed: `speed.json`, empty before evaluate.
    """

    folder: Path
    training: Training
    history: list[dict[str, float]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What MLflow's run is found by."""
        return self.training.record_id

    @property
    def run(self) -> str:
        """The run's name."""
        return self.training.run

    @property
    def images(self) -> dict[str, int]:
        """How many images each split had; the test images may have been others since training."""
        counts = {key: self.training.params.get(key) for key in SPLITS}
        if "test_images" in self.evaluation:
            counts["test_images"] = self.evaluation["test_images"]
        return {key: count if isinstance(count, int) else 0 for key, count in counts.items()}

    def other_params(self, ours: dict[str, Any]) -> dict[str, Any]:
        """What it was trained with, where `ours`, the flat params of today, has another value.

        Nothing was learned from the test images: their number may be another one.
        """
        theirs = ADDED | self.training.params
        return {key: value for key, value in theirs.items() if key != "test_images" and ours.get(key) != value}

    @property
    def comparable(self) -> bool:
        """Whether all images were used, as the published results use them."""
        train, val, test = self.images.values()
        return train + val == TRAIN_IMAGES and test == TEST_IMAGES

    @property
    def model_file(self) -> Path:
        """The trained model."""
        return self.folder / "model.keras"

    def add_epoch(
        self, row: dict[str, float], epoch_seconds: float, images_per_second: float, weights_digest: str = ""
    ) -> None:
        """Takes in a finished epoch."""
        self.history.append(row)
        self.training.epochs.append(
            EpochLog(
                epoch=int(row["epoch"]),
                ended_ms=now_ms(),
                epoch_seconds=round(epoch_seconds, 3),
                images_per_second=round(images_per_second, 1),
                weights_digest=weights_digest,
            )
        )

    def snapshot(self) -> "Record":
        """A copy that later epochs do not change."""
        return copy.deepcopy(self)

    def end(self, status: Literal["finished", "failed", "killed"], reason: str = "") -> None:
        """Writes how the training run ended, and why if it did not finish."""
        self.training.status, self.training.ended_ms, self.training.end_reason = status, now_ms(), reason
        self.save_training()

    def save_training(self) -> None:
        """Writes history.csv and training.json, each whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = list(self.history[0]) if self.history else ["epoch"]
        rows = [",".join(columns), *(",".join(f"{row[name]:.6g}" for name in columns) for row in self.history)]
        write(self.folder / "history.csv", "\n".join(rows) + "\n")
        write_json(self.folder / "training.json", self.training.as_json())

    def files(self) -> list[Path]:
        """The record's small files that exist, those of evaluate if they are of this model; the model itself not."""
        names = (*TRAINING_FILES, *(EVALUATION_FILES if self.evaluation else ()))
        return [path for name in names if (path := self.folder / name).exists()]

    def digest(self) -> str:
        """Changes whenever a file of the record does."""
        sha = hashlib.sha256()
        for path in [*self.files(), *([self.model_file] if self.model_file.exists() else [])]:
            sha.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        return sha.hexdigest()[:32]


def begin(run: str, recipe: str, params: dict[str, Any], environment: dict[str, Any]) -> Record:
    """A new record, on disk. `params`: flat, as MLflow gets them; `environment`: commit, device, versions, …"""
    training = Training(
        record_id=uuid.uuid4().hex,
        run=run,
        status="running",
        recipe=recipe,
        model=params["model"],
        seed=params["seed"],
        params=params,
        started_ms=now_ms(),
        ended_ms=None,
        epochs=[],
        environment=environment,
    )
    record = Record(RESULTS / run, training)
    record.model_file.unlink(missing_ok=True)  # of an earlier training; DVC has removed it, unless we are run by hand
    record.save_training()
    return record


def resume(run: str, training: Training, history: list[dict[str, float]]) -> Record:
    """The record of a training run that resumes, on disk again: DVC removes a stage's results before it runs."""
    after = [*training.resumed_after_epochs, len(history)]
    resumed = {"status": "running", "ended_ms": None, "end_reason": "", "resumed_after_epochs": after}
    record = Record(RESULTS / run, training.model_copy(update=resumed, deep=True), history)
    record.model_file.unlink(missing_ok=True)
    record.save_training()
    return record


def load(run: str) -> Record:
    """The record of a run in `results/`.

    Raises:
        PipelineError: there is none, or a file of it is damaged.
    """
    folder = RESULTS / run
    if not (folder / "training.json").exists():
        raise PipelineError(f"{folder}/training.json is not here: train it with `dvc repro train@{run}`")
    training = parse(read_json(folder / "training.json", Training), Training)
    if training.run != run:
        raise PipelineError(
            f"{folder}/training.json is of the run {shown(training.run)}: "
            f"restore it with git, or train again with `dvc repro --force train@{run}`"
        )
    history = read_history(folder / "history.csv")
    if training.status == "finished" and not 0 < len(history) == len(training.epochs):
        raise PipelineError(
            f"{folder}/history.csv has {len(history)} epochs, training.json {len(training.epochs)}: "
            f"restore them with git, or train again with `dvc repro --force train@{run}`"
        )
    return Record(folder, training, history, *evaluation_of(folder))


def load_finished(run: str) -> Record:
    """The same of a run whose training is finished: else a model file beside it belongs to an earlier training."""
    log = load(run)
    if (status := log.training.status) != "finished":
        raise PipelineError(f"the training run {run} is {status}, not finished: train it with `dvc repro train@{run}`")
    return log


def evaluation_of(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluation and speed; both empty if there are none, or if they are of a model that is no longer there."""
    if not all((folder / name).exists() for name in ("evaluation.json", "speed.json")):
        return {}, {}
    evaluation = read_json(folder / "evaluation.json", _Evaluation)
    speed = read_json(folder / "speed.json", _Speed)
    model = folder / "model.keras"
    if "model_sha256" in speed and (not model.is_file() or sha256(model) != speed["model_sha256"]):
        return {}, {}
    return evaluation, speed


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a history file; `epoch` is an int."""
    try:
        lines = read(path, MAX_BYTES).decode("utf-8").splitlines(keepends=True)
        rows = [
            {key: int(value) if key == "epoch" else float(value) for key, value in row.items()}
            for row in csv.DictReader(lines)
        ]
        return check_history(rows)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise PipelineError(f"{path} cannot be read ({error}); restore it with git, or train again") from None


def check_history(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows. Raises ValueError unless they are those of epochs 1, 2, …, with finite figures."""
    for number, row in enumerate(rows, 1):
        parse(row, _Row)
        if row["epoch"] != number or not all(isinstance(value, int | float) for value in row.values()):
            raise ValueError(f"row {number} is {shown(row)}")
        if not all(map(math.isfinite, row.values())):
            raise ValueError(f"row {number} has a figure that is not finite")
    return rows


def processor(measured_on: Mapping[str, Any]) -> str:
    """The processor's name, with family and model where they are recorded: one name stands for several processors."""
    name, model = measured_on["processor"], measured_on.get("processor_model")
    return f"{name} ({model.replace(' ', '/')})" if model else name


def now_ms() -> int:
    """The time in ms since 1970, MLflow's unit."""
    return time.time_ns() // 1_000_000
