"""The lock excludes others while its holder lives, and no longer."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT

from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock, is_locked

HOLD = """
import subprocess, sys, time
from pathlib import Path
from pipeline.system.file_lock import file_lock
with file_lock(Path(sys.argv[1]), "busy"):
    child = subprocess.Popen(["sleep", sys.argv[3]])
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
child.kill()
"""


def hold(folder, seconds, child_seconds=0.0):
    """A process that holds the lock, after it has it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, str(seconds), str(child_seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.fixture
def holder(tmp_path):
    process = hold(tmp_path, 60, child_seconds=60)
    yield process
    process.kill()
    process.wait()


def test_held_lock_is_refused_in_the_callers_words(tmp_path, holder):
    with pytest.raises(PipelineError, match=r"^w is in use$"), file_lock(tmp_path, "w is in use"):
        pytest.fail("held twice")


def test_lock_of_a_killed_process_is_free_although_its_child_lives(tmp_path, holder):
    assert is_locked(tmp_path)
    holder.kill()
    holder.wait()
    assert not is_locked(tmp_path)
    with file_lock(tmp_path, "busy"):
        assert is_locked(tmp_path)


def test_waits_for_the_holder_and_says_so(tmp_path, capsys):
    with hold(tmp_path, 3), file_lock(tmp_path, "busy", timeout=30):
        assert capsys.readouterr().err == "busy: waiting up to 30 s\n"


def test_gives_up_after_the_timeout(tmp_path, holder, capsys):
    began = time.monotonic()
    with pytest.raises(PipelineError, match="busy"), file_lock(tmp_path, "busy", timeout=0.4):
        pytest.fail("held twice")
    assert 0.4 <= time.monotonic() - began < 10


def test_folder_that_is_not_there_is_not_locked(tmp_path):
    assert not is_locked(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_lock_file_that_cannot_be_opened_counts_as_held(tmp_path):
    (tmp_path / ".lock").mkdir()
    assert is_locked(tmp_path)
