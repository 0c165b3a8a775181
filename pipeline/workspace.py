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

FOLDER = Path(".workspaces")
FILES = ("dvc.lock", "dvc.yaml", "params.yaml", "pipeline", "reference", "report", "results")


def main() -> None:
    """Makes or renews the copy, changes its params, and runs its pipeline."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.workspace", description=__doc__)
    parser.add_argument("name", help="of the folder under .workspaces/")
    parser.add_argument("--overlay", type=Path, help="a YAML file: its keys replace those of params.yaml")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--run", default="", help="only this run of the list, trained and evaluated; default: all")
    arguments, unknown = parser.parse_known_args()
    if unknown:  # `mlflow run -P` hands on whatever it is given
        raise PipelineError(
            f"unknown parameter: received {' '.join(unknown)}; allowed: those of this entry point, or -S"
        )
    tracking.use_callers_store()
    tracking.check()
    tree = params.read().model_dump()
    if arguments.overlay:
        overrides.replace(tree, params.parse(arguments.overlay), str(arguments.overlay))
    for setting in arguments.settings:
        key, _, value = setting.partition("=")
        if value:  # `mlflow run` hands every parameter on, also those that the user left at their empty default
            overrides.set_param(tree, key, params.parse_text(value, f"-S {command.plain(key)}"), arguments.run)
    settings = params.check(tree, "params.yaml with these changes")
    if arguments.run:
        settings.check_run(arguments.run)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", arguments.name):
        raise PipelineError(f"NAME: received {arguments.name!r}; allowed: letters, digits, '_' and '-'")
    workspace = FOLDER / arguments.name
    targets = [f"evaluate@{arguments.run}"] if arguments.run else []
    with file_lock(workspace, f"{workspace} is in use by another run; wait for it, or choose another name"):
        try:
            copy(workspace, tree)
        except OSError as error:
            reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error  # that of the first file
            raise PipelineError(f"{workspace} cannot be written: {reason}") from None
        sys.exit(reproduce(workspace, targets))


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
    local = f"[core]\n    no_scm = true\n[cache]\n    dir = {Path('.dvc/cache').resolve()}\n"
    files.write(workspace / ".dvc/config.local", local)


def reproduce(workspace: Path, targets: list[str]) -> int:
    """Runs `dvc repro` in the copy; returns its exit status. What ends this process ends DVC and its stages too."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # DVC ignores Ctrl-C while a stage runs and leaves the stage alive when it is terminated: so both are told.
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *targets], cwd=workspace, env=environment, start_new_session=True
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.killpg(process.pid, number))
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    command.run(main)
