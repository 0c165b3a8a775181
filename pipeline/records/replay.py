"""Trains a run again in a folder of its own, with any version of the code, and compares what came of it."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.records import checkpoint, record
from pipeline.system.command import PipelineError

POLL_SECONDS = 0.02  # a checkpoint is there for two epochs
# A training run in a copy must find neither this one's store nor its DVC.
FOREIGN = ("DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "PYTHONPATH")
# How far rounding alone may take two machines apart in the first epochs: absolute, in nats and fractions.
TOLERANCE = {"loss": 0.1, "accuracy": 0.05}


@dataclass
class Trace:
    """What a training run left, epoch by epoch.

    Attributes:
        name: what to call it in a sentence.
        training: what it was and where.
        history: its metrics, a row an epoch.
        states: by epoch, the digest of each array of the checkpoint: weights first, then the optimizer's.
    """

    name: str
    training: record.Training
    history: list[dict[str, float]]
    states: dict[int, list[str]] = field(default_factory=dict)

    @property
    def weights(self) -> list[str]:
        """A digest of the weights by epoch; empty where it was not recorded."""
        return [epoch.weights_digest for epoch in self.training.epochs]


def copy_code(folder: Path, commit: str | None = None) -> None:
    """Puts the code and params.yaml of a commit, or of the working files, into an empty folder.

    Raises:
        PipelineError: there is no such commit, or it has no such files.
    """
    if commit is None:
        shutil.copytree("pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2("params.yaml", folder)
        return
    archive = subprocess.run(["git", "archive", commit, "pipeline", "params.yaml"], capture_output=True)
    if archive.returncode:
        reason = archive.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise PipelineError(f"--against: received {commit!r}, of which git says: {reason}")
    subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)


def train(folder: Path, run: str, epochs: int | None, name: str, teacher: str | None = None) -> Trace:
    """Trains the first epochs of a run, or all if None, with the code in `folder`; writes nothing elsewhere.

    Args:
        folder: with code and params.yaml.
        run: its name.
        epochs: after which to stop.
        name: what to call this code in a sentence.
        teacher: the run whose recorded model is the teacher.

    Raises:
        PipelineError: it ended before.
    """
    (folder / "data").mkdir()
    (folder / record.DATA).symlink_to(record.DATA.resolve())
    if teacher:
        shutil.copytree(record.RESULTS / teacher, folder / record.RESULTS / teacher)
    environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    states: dict[int, list[str]] = {}
    command = [sys.executable, "-m", "pipeline.train", run]
    warnings = folder / "stderr"  # that there is no git here and that it was ended is no news; a failure is
    with warnings.open("w") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=stderr)
        with _ended(process):
            while (ended := process.poll()) is None and not (epochs and max(states, default=0) >= epochs):
                _note_states(folder / record.CHECKPOINTS / run, states)
                time.sleep(POLL_SECONDS)
    if ended:
        print(warnings.read_text(errors="replace"), end="", file=sys.stderr)
        raise PipelineError(f"{name} did not train {run}: its trainer ended with status {ended}")
    with contextlib.chdir(folder):
        log = record.load(run)
    done = log.history[: epochs or len(log.history)]
    if epochs and len(done) < epochs:
        raise PipelineError(f"{run} has {len(done)} epochs with {name}, not {epochs}")
    return Trace(name, log.training, done, states)


@contextlib.contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    """Ends the process, whatever happens."""
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _note_states(folder: Path, states: dict[int, list[str]]) -> None:
    """Adds the checkpoints that have come to `folder`, by epoch."""
    for path in folder.glob("*.ckpt"):
        epoch = int(path.stem[-4:])
        if epoch and epoch not in states:
            with contextlib.suppress(checkpoint.DamagedError):  # it was removed meanwhile
                values = checkpoint.read(path).values
                states[epoch] = [hashlib.sha256(value.tobytes()).hexdigest() for value in values]


def first_difference(ours: Trace, theirs: Trace) -> str | None:
    """What first differs between two runs, in a sentence; None if they are equal as far as both go."""
    for number, (mine, other) in enumerate(zip(ours.history, theirs.history, strict=False), 1):
        for key in mine.keys() & other.keys():
            if mine[key] != other[key]:
                return f"epoch {number}: {key} is {mine[key]:g} with {ours.name}, {other[key]:g} with {theirs.name}"
        if all(digests := [trace.weights[number - 1] for trace in (ours, theirs)]) and digests[0] != digests[1]:
            return f"epoch {number}: equal metrics, but other weights"
        # A version of the code may keep more than the other: what both keep is compared.
        arrays = list(zip(ours.states.get(number, []), theirs.states.get(number, []), strict=False))
        if differing := [index for index, (a, b) in enumerate(arrays) if a != b]:
            return (
                f"epoch {number}: equal metrics, but {len(differing)} of the checkpoint's {len(arrays)} arrays differ, "
                f"array {differing[0]} first"
            )
    return None


def largest_deviations(ours: Trace, theirs: Trace) -> dict[str, float]:
    """The largest absolute difference over the epochs, of losses (nats) and of accuracies (fractions)."""
    pairs = list(zip(ours.history, theirs.history, strict=False))
    return {
        kind: max(abs(mine[key] - other[key]) for mine, other in pairs for key in (kind, f"val_{kind}"))
        for kind in TOLERANCE
    }
