"""How a command ends: one line on stderr, and a status that says why."""

import errno
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from pipeline.system import command

WAIT = "import time; from pipeline.system import command; command.run(lambda: (print(1, flush=True), time.sleep(60)))"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (".", "the same command resumes it"),
        (".dvc/tmp/exps/tmpabc", "DVC removes this temporary copy: start the experiment again"),
    ],
)
def test_ctrl_c_says_how_to_resume(tmp_path, folder, said):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        cwd=tmp_path / folder,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, written = process.communicate()
    assert process.returncode == 130
    assert written.startswith("interrupted; ")
    assert said in written
    assert len(written.splitlines()) == 1


def refused(code, path=None):
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: (_ for _ in ()).throw(OSError(code, "refused", path)))
    return str(ended.value)


def test_what_may_not_be_written_is_named_with_the_fix():
    said = "error: checkpoints: refused; run in a copy of the repository that you may write to"
    for code in (errno.EACCES, errno.EPERM, errno.EROFS):
        assert refused(code, "checkpoints") == said
    assert refused(errno.ENOSPC, "x") == "error: [Errno 28] refused: 'x'"


@pytest.mark.parametrize(("number", "said"), [(1, "1 epoch"), (0, "0 epochs"), (1000, "1,000 epochs")])
def test_counted(number, said):
    assert command.counted(number, "epoch") == said
