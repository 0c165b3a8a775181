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
    ("number", "status", "how"), [(signal.SIGINT, 130, "interrupted; "), (signal.SIGTERM, 143, "terminated; ")]
)
@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (".", "the same command resumes it"),
        (".dvc/tmp/exps/tmpabc", "DVC removes this temporary copy: start the experiment again"),
    ],
)
def test_what_stops_a_command_says_how_to_resume(tmp_path, folder, said, number, status, how):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "params.yaml").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        cwd=tmp_path / folder,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.send_signal(number)
    _, written = process.communicate()
    assert process.returncode == status
    assert written.startswith(how)
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


VERBS = ("fetch", "compare --show", "train custom-0", "evaluate custom-0", "sync", "workspace w", "config.params")


@pytest.mark.parametrize("verb", VERBS)
def test_another_folder_is_said_and_nothing_is_made_there(tmp_path, verb):
    module, *arguments = verb.split()
    ended = subprocess.run(
        [sys.executable, "-m", f"pipeline.{module}", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"error: params.yaml is not here; run the command in {ROOT}\n"
    assert list(tmp_path.iterdir()) == []


def test_commands_are_listed_with_what_they_do():
    listed = subprocess.run([sys.executable, "-m", "pipeline"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = listed.stdout.splitlines()
    assert "python -m pipeline.train RUN       Trains one run of params.yaml" in lines
    guarded = [p for p in (ROOT / "pipeline").rglob("*.py") if '__name__ == "__main__"' in p.read_text()]
    assert len([line for line in lines if line.startswith("python -m ")]) == len(guarded) - 1  # this command itself
    assert all(line.split("  ", 1)[1].strip() for line in lines if line.startswith("python -m "))


def test_geometry_prints_its_table_and_no_notes_of_tensorflow(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.geometry", "compact"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "60"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) <= 60
    assert "…" not in ended.stdout
    total = next(line for line in ended.stdout.splitlines() if line.strip().startswith("total"))
    assert total.split() == ["total", "90,514", "26,428,080"]


def test_output_that_nobody_reads_is_no_error():
    code = "from pipeline.system import command; command.run(lambda: [print(number) for number in range(100_000)])"
    line = f"'{sys.executable}' -c '{code}' | head -n 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, "0\n", "")


FAILS = """
from pipeline.system import command
def main():
    try: {}["key"]
    except KeyError as error: raise command.PipelineError("what to mend") from error
command.run(main)
"""


@pytest.mark.parametrize("trace", [True, False])
def test_stack_trace_is_shown_on_request(trace):
    environment = {"PYTHONPATH": str(ROOT)} | ({"PIPELINE_TRACE": "1"} if trace else {})
    done = subprocess.run([sys.executable, "-c", FAILS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("error: what to mend\n")
    assert ("KeyError: 'key'" in done.stderr) == trace
    assert (done.stderr.count("\n") == 1) != trace
