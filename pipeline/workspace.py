"""`dvc repro` in a copy of the working files, with params of its own: `python -m pipeline.workspace NAME`.

The copy, `.workspaces/NAME/`, is ignored by git. params.yaml, dvc.lock and the recorded results stay as they are. Data
and DVC's cache are shared with the repository, and so is the MLflow store.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline import tracking
from pipeline.config import overrides, params
from pipeline.records import files
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock
from pipeline.tracking import pending

FOLDER = pending.WORKSPACES
FILES = ("dvc.lock", "dvc.yaml", "params.yaml", "pipeline", "reference", "report", "results")


def main() -> None:
    """Makes or renews the copy, changes its params, and runs its pipeline."""
    arguments = parse()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", arguments.name):
        raise PipelineError(f"NAME: received {arguments.name!r}; allowed: letters, digits, '_' and '-'")
    tracking.use_callers_store()
    tracking.check()
    try:
        tree, run = changed_params(arguments)
    except PipelineError as error:
        describe(arguments, arguments.run, f"Refused: {error}.")
        raise
    workspace = FOLDER / arguments.name
    runs = [run] if run else list(tree["runs"])
    with file_lock(workspace, f"{workspace} is in use by another run; wait for it, or choose another name"):
        try:
            pending.set_aside(workspace)
            copy(workspace, tree)
            pending.note(workspace, runs)
        except OSError as error:
            reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error  # that of the first file
            raise PipelineError(f"{workspace} cannot be written: {reason}") from None
        describe(arguments, run)
        status = reproduce(workspace, [f"evaluate@{run}"] if run else [])
        pending.complete(workspace)
        if status:
            describe(arguments, run, f"Failed: `dvc repro` ended with status {status}; see the runs' `end_reason`.")
        sys.exit(status)


def parse() -> argparse.Namespace:
    """The command line. `mlflow run -P KEY=VALUE` hands on `--KEY VALUE`; an empty value changes nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.workspace",
        description=__doc__,
        epilog="--KEY VALUE: as -S KEY=VALUE, where KEY is a key of a recipe, of data or of train.",
        allow_abbrev=False,
    )
    parser.add_argument("name", help="of the folder under .workspaces/")
    parser.add_argument("--overlay", type=Path, help="a YAML file: its keys replace those of params.yaml")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--run", default="", help="only this run of the list, trained and evaluated; default: all")
    parser.add_argument("--recipe", default="", help="this recipe instead; default: those of the list, or the run's")
    parser.add_argument("--seed", default="", help="this seed instead; default: those of the list, or the run's")
    arguments, others = parser.parse_known_args()
    keys, values = others[::2], others[1::2]
    if len(keys) != len(values) or not all(re.fullmatch(r"--[\w.-]+", key) for key in keys):
        raise PipelineError(f"received {command.shown(' '.join(others))}; allowed: --KEY VALUE, see --help")
    arguments.settings += [f"{full_key(key[2:])}={value}" for key, value in zip(keys, values, strict=True)]
    return arguments


def full_key(key: str) -> str:
    """`data.train_images` for `train_images`, `train.device` for `device`; a recipe's key as it is."""
    if key in params.Data.model_fields:
        return f"data.{key}"
    return f"train.{key}" if key in params.Train.model_fields else key


def changed_params(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The values of params.yaml with all changes, checked, and the name of the only run asked for."""
    changed = "params.yaml with these changes"
    tree = params.read().model_dump()
    listed = dict(tree["runs"])
    if arguments.overlay:
        overrides.replace(tree, params.parse(arguments.overlay), str(arguments.overlay))
    seed = params.parse_text(arguments.seed, "seed") if arguments.seed else None
    if seed is not None and type(seed) is not int:
        raise PipelineError(f"seed: received {command.shown(seed)}; allowed: a whole number")
    run = overrides.select_runs(tree, arguments.run, arguments.recipe, seed)
    for setting in arguments.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise PipelineError(f"-S: received {command.shown(setting)}; allowed: KEY=VALUE")
        if value:
            overrides.set_param(tree, key, params.parse_text(value, f"-S {command.plain(key)}"), run)
    overrides.complete_runs(tree, listed)
    tree["sweeps"] = {}  # none is run there, and its recipe's teacher may be left out
    config = params.check(tree, changed)
    if run:
        config.check_run(run)
    return tree, run


def describe(arguments: argparse.Namespace, run: str, outcome: str = "") -> None:
    """Says in MLflow what the run of `mlflow run` is, of which the training runs are children."""
    given = [setting for setting in arguments.settings if not setting.endswith("=")]
    given += [f"{key}={value}" for key in ("recipe", "seed") if (value := getattr(arguments, key))]
    name = ": ".join(filter(None, [" ".join(filter(None, [arguments.name, run])), ", ".join(given)]))
    changes = f"with {', '.join(given)}" if given else "with params as they are"
    what = f"the pipeline in `{FOLDER / arguments.name}`, {changes}. The runs that it trained are its children. "
    tracking.describe(name, f"{what}It changes no recorded result.\n\n{outcome}".strip())


def copy(workspace: Path, tree: dict[str, Any]) -> None:
    """Makes the copy equal to the working files, recorded results included: what they still hold for is not repeated.

    The data stays there: it is fetched once.
    """
    for name in FILES:
        source, target = Path(name), workspace / name
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target)
    files.write(workspace / "params.yaml", yaml.safe_dump(tree, sort_keys=False))
    (workspace / ".dvc").mkdir(exist_ok=True)
    shutil.copy2(".dvc/config", workspace / ".dvc/config")
    local = f'[core]\n    no_scm = true\n[cache]\n    dir = "{Path(".dvc/cache").resolve()}"\n'
    files.write(workspace / ".dvc/config.local", local)


def environment() -> dict[str, str]:
    """Of a DVC in a copy: `python` in a stage is this one, and a relative CIFAR10_SOURCE still leads to the data."""
    changed = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if source := changed.get("CIFAR10_SOURCE"):
        changed["CIFAR10_SOURCE"] = os.path.abspath(os.path.expanduser(source))
    return changed


def reproduce(workspace: Path, targets: list[str]) -> int:
    """Runs `dvc repro` in the copy; returns its exit status. What ends this process ends DVC and its stages too."""
    # DVC ignores Ctrl-C while a stage runs and leaves the stage alive when it is terminated: so both are told.
    sent = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup
        del sent[signal.SIGHUP]
    if "--keep-going" in targets:  # after Ctrl-C, DVC would go on with the next stage
        sent[signal.SIGINT] = signal.SIGTERM
    process: subprocess.Popen | None = None
    told, early = [], []  # all signals that came; those while DVC was being started

    def tell(number: int, _: Any) -> None:
        told.append(number)
        if process:
            os.killpg(process.pid, sent[signal.Signals(number)])
        else:
            early.append(number)

    before = {number: signal.signal(number, tell) for number in sent}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *targets], cwd=workspace, env=environment(), start_new_session=True
        )
        for number in early:
            tell(number, None)
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in told and status:
        return 130
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    command.run(main)
