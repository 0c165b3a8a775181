"""Trains a run's first epochs again and compares them with its record: `python -m pipeline.verify RUN`.

With --against COMMIT, trains with the code of that commit and with the working files, and compares the two bit for bit:
after a refactor of code that changes weights, this shows that it changed none. Writes nothing in the repository.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipeline import splits
from pipeline.config import overrides, params
from pipeline.records import files, fingerprint, record, replay
from pipeline.system import command
from pipeline.system.command import PipelineError

EPOCHS = 2
# What a machine may differ in, so that it rounds differently.
MACHINE = ("device", "processor", "processor_model", "instruction_sets", "threads", "precision", "xla", "onednn")
VERSIONS = ("tensorflow", "keras", "numpy")


def main() -> None:
    """Verifies the run named on the command line; exits with 1 if it differs."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.verify", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run of params.yaml")
    parser.add_argument("--epochs", type=int, metavar="K", help=f"number of epochs to train; default: {EPOCHS}")
    parser.add_argument("--all", action="store_true", help="all epochs")
    parser.add_argument("--against", metavar="COMMIT", help="compare with the code and params.yaml of this commit")
    parser.add_argument(
        "--overlay", type=Path, help="with --against: a YAML file whose keys replace those of params.yaml"
    )
    arguments = parser.parse_args()
    if arguments.all and arguments.epochs is not None:
        parser.error("--all and --epochs exclude each other")
    if arguments.overlay and not arguments.against:
        parser.error("--overlay needs --against: a record is of the values in params.yaml")
    tree = params.parse("params.yaml")
    if arguments.overlay:
        apply_overlay(tree, arguments.overlay)
    config = params.check(tree)
    run = config.check_run(arguments.run)
    most = config.recipe_of(run).epochs
    if arguments.epochs is not None and not 1 <= arguments.epochs <= most:
        parser.error(f"--epochs: received {arguments.epochs}; allowed: 1 to {most}")
    epochs = None if arguments.all else arguments.epochs or min(EPOCHS, most)
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        folder = Path(temporary)
        if arguments.against:
            teacher = config.teacher_of(run)
            agrees = against_commit(run, arguments.against, epochs, arguments.overlay, teacher, folder)
        else:
            agrees = against_record(run, epochs, folder)
    sys.exit(0 if agrees else 1)


def against_record(run: str, epochs: int | None, folder: Path) -> bool:
    """Trains `run` again and says whether its record is reproduced.

    Raises:
        PipelineError: the record is not of params.yaml's values, or of other data.
    """
    log = record.load_finished(run)
    config = params.read()
    ours = config.flat(run)
    if differing := log.other_params(ours):
        key = next(iter(differing))
        raise PipelineError(
            f"{run}: {key} is {ours.get(key)!r} in params.yaml and {differing[key]!r} in the record: "
            f"restore the value, or train again with `dvc repro train@{run}`"
        )
    if fingerprint.hash_data(*splits.read_train_val(config.data)) != log.training.environment.get("data_hash"):
        raise PipelineError(f"{run}: the data is not that of the record: fetch it again with `dvc repro --force fetch`")
    replay.copy_code(folder)
    trace = replay.train(folder, run, epochs, "this code", config.teacher_of(run))
    theirs = replay.Trace("the record", log.training, log.history[: len(trace.history)])
    where, there = trace.training.environment, log.training.environment
    epochs = len(trace.history)
    difference = replay.first_difference(trace, theirs)
    if difference is None:
        exact = all(theirs.weights[:epochs])
        print(f"{run}: {_span(epochs)} {'reproduced bit for bit' if exact else 'equal in all recorded digits'}")
        return True
    print(f"{run}: {difference}")
    other = [key for key in (*MACHINE, *VERSIONS) if where.get(key) != there.get(key, where.get(key))]
    if not other:
        return False
    elsewhere = [f"{key} is {where.get(key)}, recorded: {there[key]}" for key in other]
    deviations = replay.largest_deviations(trace, theirs)
    within = all(deviations[kind] <= allowed for kind, allowed in replay.TOLERANCE.items())
    words = ", ".join(f"{kind} by {deviations[kind]:.4f} (allowed: {replay.TOLERANCE[kind]:g})" for kind in deviations)
    print(f"The record is of another machine, which rounds differently: {'; '.join(elsewhere)}")
    verdict = "within" if within else "outside"
    print(f"{run}: {_span(epochs)} {verdict} the tolerance for that; largest deviations: {words}")
    return within


def against_commit(
    run: str, commit: str, epochs: int | None, overlay: Path | None, teacher: str | None, folder: Path
) -> bool:
    """Trains `run` with the code of `commit` and with the working files, and says whether they agree bit for bit."""
    traces = []
    for name, of in ((f"commit {commit}", commit), ("the working files", None)):
        side = folder / ("before" if of else "after")
        side.mkdir()
        replay.copy_code(side, of)
        if overlay:
            tree = params.parse(side / "params.yaml")
            apply_overlay(tree, overlay)
            files.write(side / "params.yaml", yaml.safe_dump(tree, sort_keys=False))
        print(f"with {name}:", flush=True)
        traces.append(replay.train(side, run, epochs, name, teacher))
    before, after = traces
    difference = replay.first_difference(after, before)
    lengths = [len(trace.history) for trace in traces]
    if difference is None and lengths[0] != lengths[1]:
        difference = f"{lengths[0]} epochs with {before.name}, {lengths[1]} with {after.name}"
    print(f"{run}: {difference or _span(lengths[0]) + f' equal bit for bit with {before.name}'}")
    return difference is None


def apply_overlay(tree: dict[str, Any], overlay: Path) -> None:
    """Replaces values of params.yaml by those of the overlay; sweeps go, since it may leave out a recipe's teacher."""
    overrides.replace(tree, params.parse(overlay), str(overlay))
    if "sweeps" in tree:
        tree["sweeps"] = {}


def _span(epochs: int) -> str:
    return f"epochs 1 to {epochs}" if epochs > 1 else "epoch 1"


if __name__ == "__main__":
    command.run(main, resumes=False)
