import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError

from pipeline import fetch, sources
from pipeline.system.command import PipelineError

fork = multiprocessing.get_context("fork")  # the child inherits the made-up files, and starts at once


@pytest.fixture
def files(monkeypatch):
    """Six files of 10 bytes, name -> bytes, in place of the published ones."""
    files = {name: f"{number:010}".encode() for number, name in enumerate(sources.MD5S)}
    monkeypatch.setattr(sources, "FILE_BYTES", 10)
    monkeypatch.setattr(sources, "MD5S", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})
    return files


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "cifar10"


@pytest.fixture
def downloads(monkeypatch):
    """Puts functions in place of the downloads."""

    def use(*functions):
        monkeypatch.setattr(sources, "DOWNLOADS", {function.__name__: function for function in functions})

    return use


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def giving(files):
    def working(folder):
        write(folder, files)

    return working


def failing(folder):
    (folder / "part").write_bytes(b"half")
    raise PipelineError("no answer")


def forbidden(folder):
    raise AssertionError("this source must not be asked")


def left_over(target):
    return {path.name for path in target.parent.iterdir()} - {".fetch.lock"}


def eventually(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestSources:
    def test_first_that_works(self, files, target, downloads):
        downloads(failing, giving(files), forbidden)
        fetch.fetch(target)
        assert read(target) == files
        assert left_over(target) == {"cifar10"}

    def test_local_copy_is_the_only_source_where_it_is_named(self, files, target, downloads, tmp_path):
        downloads(forbidden)
        write(tmp_path / "local", files)
        fetch.fetch(target, str(tmp_path / "local"))
        assert read(target) == files

    def test_local_copy_that_is_not_there_is_named_and_not_downloaded(self, files, target, downloads, tmp_path):
        downloads(forbidden)
        with pytest.raises(PipelineError, match=rf"CIFAR10_SOURCE={tmp_path}/none: it does not exist"):
            fetch.fetch(target, f"{tmp_path}/none")

    def test_home_in_the_local_path(self, files, target, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "local", files)
        fetch.fetch(target, "~/local")
        assert read(target) == files

    def test_empty_variable_is_none(self, files, target, downloads):
        downloads(giving(files))
        fetch.fetch(target, "")
        assert read(target) == files

    def test_none_works(self, files, target, downloads):
        def refused(folder):
            nobody = MaxRetryError(HTTPConnectionPool("host"), "/", OSError("connection refused"))
            raise requests.exceptions.ConnectionError(nobody)

        downloads(failing, refused)
        with pytest.raises(PipelineError) as error:
            fetch.fetch(target)
        lines = str(error.value).splitlines()
        assert lines[1:3] == ["  failing: no answer", "  refused: connection refused"]
        assert "Set CIFAR10_SOURCE to a copy of cifar-10-binary.tar.gz" in lines[-1]
        assert left_over(target) == set()


class TestTarget:
    def test_verified_files_are_used(self, files, target, downloads):
        downloads(forbidden)
        write(target, files)
        fetch.fetch(target, "/no/such/copy")
        assert read(target) == files
        assert list(target.parent.iterdir()) == [target]  # no lock either: it may be read-only

    def test_damaged_file_is_fetched_again_and_others_stay(self, files, target, downloads):
        downloads(giving(files))
        write(target, files | {"test_batch.bin": b"0123456789", "mine.txt": b"mine"})
        fetch.fetch(target)
        assert read(target) == files | {"mine.txt": b"mine"}

    def test_bytes_that_are_not_the_published_never_arrive(self, files, target, tmp_path):
        write(tmp_path / "local", files | {"test_batch.bin": b"0123456789"})
        with pytest.raises(PipelineError, match=r"test_batch\.bin .* expected MD5 \w+, received \w+"):
            fetch.fetch(target, str(tmp_path / "local"))
        assert left_over(target) == set()

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_full_disk(self, files, target, downloads, code):
        def filling(folder):
            (folder / "part").write_bytes(b"half")
            raise OSError(code, os.strerror(code))

        downloads(filling, forbidden)
        with pytest.raises(PipelineError, match=r"cannot be written: .*; 0\.5 GB is needed"):
            fetch.fetch(target)
        assert left_over(target) == set()

    def test_file_in_place_of_the_folder(self, files, target, downloads):
        downloads(giving(files))
        target.parent.parent.joinpath("data").write_text("a file")
        with pytest.raises(PipelineError, match="cannot be written"):
            fetch.fetch(target)


class TestKilled:
    def test_while_downloading(self, files, target, downloads):
        def hanging(folder):
            write(folder, dict(list(files.items())[:3]))
            (folder / "data_batch_4.bin").write_bytes(b"half")
            time.sleep(60)

        downloads(hanging)
        process = fork.Process(target=fetch.fetch, args=(target,))
        process.start()
        eventually(lambda: list(target.parent.glob(".fetch-*/data_batch_4.bin")))
        process.kill()
        process.join()
        assert not target.exists()
        downloads(giving(files))
        fetch.fetch(target)
        assert read(target) == files
        assert left_over(target) == {"cifar10"}

    def test_while_moving(self, files, target, downloads, monkeypatch):
        downloads(giving(files))
        replace, moved = os.replace, []

        def move_three(*paths):
            if len(moved) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            moved.append(replace(*paths))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", move_three)
            process = fork.Process(target=fetch.fetch, args=(target,))
            process.start()
            process.join()
        assert len(read(target)) == 3
        assert read(target).items() <= files.items()
        fetch.fetch(target)
        assert read(target) == files
        assert left_over(target) == {"cifar10"}


def test_two_side_by_side_download_once(files, target, downloads, tmp_path):
    asked = tmp_path / "asked"
    asked.mkdir()

    def slow(folder):
        (asked / folder.name).touch()
        time.sleep(0.2)
        write(folder, files)

    downloads(slow)
    processes = [fork.Process(target=fetch.fetch, args=(target,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(asked.iterdir())) == 1
    assert read(target) == files


def test_command_fails_without_a_stack_trace(tmp_path):
    environment = os.environ | {"CIFAR10_SOURCE": "/no/such/copy", "PYTHONPATH": str(Path(fetch.__file__).parents[1])}
    command = [sys.executable, "-m", "pipeline.fetch"]
    (tmp_path / "params.yaml").touch()
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "error: CIFAR-10 could not be fetched\n  CIFAR10_SOURCE=/no/such/copy: it does not exist\n"
    )
    assert "Traceback" not in ended.stderr


def test_name_that_is_no_text_is_shown_all_the_same(tmp_path):
    environment = os.environ | {"CIFAR10_SOURCE": "/no/\udcff", "PYTHONPATH": str(Path(fetch.__file__).parents[1])}
    command = [sys.executable, "-m", "pipeline.fetch"]
    (tmp_path / "params.yaml").touch()
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "CIFAR10_SOURCE=/no/\\udcff: it does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["n" * 300, "", "a/../.."])
def test_any_other_local_path_is_a_reason(files, target, name, tmp_path):
    with pytest.raises(PipelineError, match="could not be fetched"):
        fetch.fetch(target, f"{tmp_path}/{name}")
    assert left_over(target) == set()


def test_tensorflow_is_not_imported():
    program = "import sys, pipeline.fetch; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(fetch.__file__).parents[1]).returncode == 0
