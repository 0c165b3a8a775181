"""Workers that are processes on this machine, each with its share of the processor's cores."""

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO

from pipeline.engine import Job, Message, Resume, WorkerDiedError
from pipeline.system.command import REPOSITORY, PipelineError, shortened

SERVE = "import sys; from pipeline.engine import local; local.serve(int(sys.argv[1]))"


class LocalEngine:
    """Processes here.

    Args:
        folder: where `data/cifar10` is, and a teacher's results.
        parallel: runs at a time; each has as many cores as the others, and its record says how many threads.
    """

    def __init__(self, folder: Path, parallel: int = 1):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        most = len(cores) or os.cpu_count() or 1
        if not 1 <= parallel <= most:
            raise PipelineError(f"--parallel: received {parallel}; allowed here: 1 to {most}, a core for each run")
        self.parallel = parallel
        self._folder = folder
        each = most // parallel
        self._free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for start in range(0, each * parallel, each):
            self._free.put(cores[start : start + each])

    def start(self, job: Job) -> "LocalWorker":
        """Starts a process on cores that no other one has."""
        cores = self._free.get()
        try:
            return LocalWorker(job, self._folder, cores, self._free)
        except BaseException:
            self._free.put(cores)
            raise

    def stop(self) -> None:
        """Nothing waits to start."""

    def close(self) -> None:
        """Nothing is left: a worker ends with its run."""


class LocalWorker:
    """A process here; it ends with this one, even by kill -9."""

    is_here = True
    location = "here"

    def __init__(self, job: Job, folder: Path, cores: list[int], free: queue.SimpleQueue[list[int]]):
        self._cores, self._free = cores, free
        self._ended = threading.Lock()
        self._said: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - as long as the process
        self._connection, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        # A session of its own: Ctrl-C is the driver's to hear, which then ends the worker.
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(theirs.fileno())],
            cwd=folder,
            env=environment,
            stdout=self._said,
            stderr=self._said,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        with contextlib.suppress(OSError):  # its end is noticed when a message is awaited
            self._connection.send((job, folder, self._cores))

    def receive(self) -> Message:
        """Waits for the next message. Raises WorkerDiedError."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            status = self._process.wait()
            self._said.seek(0)
            last = (self._said.read().splitlines() or [""])[-1]
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise WorkerDiedError(f"its process {how}{': ' if last else ''}{shortened(last)}") from None

    def send(self, message: Resume) -> None:
        """Hands a message to the process."""
        with contextlib.suppress(OSError):  # as above
            self._connection.send(message)

    def end(self) -> None:
        """Kills the process, and lets another have its cores."""
        self._process.kill()
        self._process.wait()
        if self._ended.acquire(blocking=False):
            self._free.put(self._cores)


def serve(descriptor: int) -> None:
    """What the process runs: computes the run that it receives."""
    connection = Connection(descriptor)
    job, folder, cores = connection.recv()
    if cores:
        os.sched_setaffinity(0, cores)  # before TensorFlow, which makes as many threads
    from pipeline.engine.worker import work

    work(job, folder, _Channel(connection))


class _Channel:
    """The process's side of the pipe."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def send(self, message: Message) -> None:
        self._connection.send(message)

    def receive(self) -> Resume:
        message = self._connection.recv()
        threading.Thread(target=self._end_with_driver, daemon=True).start()
        return message

    def _end_with_driver(self) -> None:
        """The driver says no more: what can be read now is the end of its pipe."""
        self._connection.poll(None)
        os._exit(1)
