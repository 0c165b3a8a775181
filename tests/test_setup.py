"""`make setup` keeps what was chosen, and makes the environment anew for another Python. Python and uv are stubs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

PYTHON = """#!/bin/sh
# {name}
case "$*" in
"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp uv .venv/bin/uv && echo made by {name} >> log ;;
*sys.base_prefix*) echo {name} ;;
*version_info*) exit {status} ;;
esac
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a space and an umlaut that holds the Makefile, two Pythons and one that is too old."""
    folder = tmp_path / "my projéct"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    for lock in ("requirements.txt", "requirements-gpu.txt"):
        (folder / lock).write_text("uv==1 \\\n    --hash=sha256:0\n")
    for name, status in (("one", 0), ("two", 0), ("old", 1)):
        (folder / name).write_text(PYTHON.format(name=name, status=status))
        (folder / name).chmod(0o755)
    (folder / "uv").write_text('#!/bin/sh\nfor last; do :; done; echo "synced $last" >> log\n')
    (folder / "uv").chmod(0o755)
    return folder


def make(folder, *arguments):
    """What a `make` does to the environment: lines of the stubs, and its exit status."""
    (folder / "log").write_text("")
    done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)
    return (folder / "log").read_text().splitlines(), done


def test_choice_holds_until_another_is_made(folder):
    assert make(folder, "setup", "PYTHON=./one", "GPU=1")[0] == ["made by one", "synced requirements-gpu.txt"]
    assert make(folder, "setup")[0] == []
    os.utime(folder / ".venv/installed", (0, 0))  # the lock changed since
    assert make(folder, "setup")[0] == ["synced requirements-gpu.txt"]
    assert make(folder, "setup", "GPU=0")[0] == ["synced requirements.txt"]
    assert make(folder, "setup")[0] == []
    assert make(folder, "setup", "PYTHON=./two")[0] == ["made by two", "synced requirements.txt"]
    assert make(folder, "setup")[0] == []


def test_same_python_by_another_name_keeps_the_environment(folder):
    make(folder, "setup", "PYTHON=./one")
    shutil.copy(folder / "one", folder / "uno")
    assert make(folder, "setup", "PYTHON=./uno")[0] == ["synced requirements.txt"]


def test_moved_and_copied_folders_get_an_environment_of_their_own(folder):
    make(folder, "setup", "PYTHON=./one", "GPU=1")
    copy = Path(shutil.copytree(folder, folder.with_name("copy of it")))
    assert make(copy, "setup")[0] == ["made by one", "synced requirements-gpu.txt"]
    assert make(copy, "setup")[0] == []
    moved = folder.rename(folder.with_name("moved"))
    assert make(moved, "setup")[0] == ["made by one", "synced requirements-gpu.txt"]
    assert make(moved, "setup")[0] == []


@pytest.mark.parametrize("python", ["./old", "./none"])
def test_python_that_will_not_do_leaves_the_environment_alone(folder, python):
    make(folder, "setup", "PYTHON=./one")
    did, done = make(folder, "setup", f"PYTHON={python}")
    assert did == []
    assert done.returncode != 0
    assert make(folder, "setup")[0] == []


def test_python_that_is_not_there_is_named(folder):
    assert "error: ./none does not run; choose another Python with: make setup PYTHON=" in (
        make(folder, "setup", "PYTHON=./none")[1].stderr
    )
