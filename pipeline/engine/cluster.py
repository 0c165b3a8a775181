"""Workers on a Ray cluster: an actor for each run. The only importer of ray.

A run has a GPU where its node has some, else all of the node's cores. Code travels with the connection; each node
fetches the data for itself, once. Ray restarts nothing: it begins with the first state; the driver has a later one.
"""

import hashlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.engine import EngineError, Failed, Job, Message, NodeRefusedError, Resume, WorkerDiedError
from pipeline.records import files
from pipeline.system.command import PipelineError, shortened
from pipeline.system.file_lock import file_lock

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError, RuntimeEnvSetupError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise PipelineError("--engine ray: Ray is not installed; install it with `make setup-ray`") from None

PACKAGE = Path(__file__).resolve().parents[1]
ANSWER_SECONDS = 60.0  # for the cluster to answer at all; a busy machine takes 20 to begin to ask
NODE_SECONDS = 60.0  # for a node to come, when none is left
RETRY_SECONDS = 1.0  # until Ray has noticed that a node is gone
MOST_STARTS = 60  # of workers that die before they begin a run: a node that is gone may be noticed late
SAME = ("python", "tensorflow", "keras", "numpy")  # versions that decide on the weights
CACHE = "cifar10-small-models"  # a folder in the node's cache


class NodeError(WorkerDiedError):
    """A node cannot compute, whichever worker is tried there."""


class RayEngine:
    """The cluster that RAY_ADDRESS names, or a Ray of this machine's own.

    Args:
        parallel: runs at a time; None: as many as the cluster has room for now.

    Raises:
        PipelineError: the cluster does not answer, refuses the token, or has no room.
    """

    def __init__(self, parallel: int | None = None):
        if parallel is not None and parallel < 1:
            raise PipelineError(f"--parallel: received {parallel}; allowed: 1 or more")
        address = os.environ.get("RAY_ADDRESS") or "local"
        if address != "local":
            _check(address)
        elif " " in sys.executable:
            raise PipelineError(
                f"--engine ray: Ray cannot start from a folder whose path has a space: {sys.executable}; move the "
                "repository and run `make setup`, or let RAY_ADDRESS name a cluster"
            )
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        handler = signal.getsignal(signal.SIGTERM)
        own = {"include_dashboard": False} if address == "local" else {}
        environment = {"py_modules": [str(PACKAGE)], "excludes": ["**/__pycache__"]}
        try:
            ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level="ERROR", **own)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise PipelineError(f"RAY_ADDRESS={address}: {shortened(str(error))}") from None
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which ends with another status
        self._lock, self._used, self._refused = threading.Lock(), Counter[str](), dict[str, str]()
        self._stopped = False
        room = sum(_room(node) for node in _nodes())
        if not room:
            raise PipelineError(f"RAY_ADDRESS={address}: no node has a core for runs; start some with `ray start`")
        self.parallel = parallel or room

    def start(self, job: Job) -> "RayWorker":
        """A worker on a node that has room for one.

        Raises:
            EngineError: no node is left, or none that can compute.
        """
        deaths = 0
        while True:
            worker = RayWorker(self._take_node(), self._release, self._refuse)
            try:
                self._check_versions(self._answer(worker, "versions"))
                self._answer(worker, "begin", job)
                return worker
            except NodeError as error:
                self._refuse(worker, str(error))
                worker.end()
            except WorkerDiedError as error:
                worker.end()
                deaths += 1
                if deaths == MOST_STARTS:
                    raise EngineError(
                        f"{job.run}: {deaths} workers died before they began; the last one: {error}"
                    ) from None
                print(f"warning: {job.run}: {error}; another worker is started", file=sys.stderr)
                time.sleep(RETRY_SECONDS)
            except BaseException:
                worker.end()
                raise

    def stop(self) -> None:
        """Lets no worker start any more."""
        self._stopped = True

    def close(self) -> None:
        """Leaves the cluster; what ran there for this process ends."""
        ray.shutdown()

    def _answer(self, worker: "RayWorker", method: str, *arguments: Any) -> Any:
        """What a worker's method returns, waited for until `stop`."""
        answer = worker.call(method, *arguments)
        while True:
            try:
                return worker.get(answer, timeout=1.0)  # Ray waits as long as another driver has the node
            except GetTimeoutError:
                if self._stopped:
                    raise EngineError("stopped") from None

    def _check_versions(self, theirs: dict[str, str]) -> None:
        """Raises NodeError if a worker's versions differ from ours."""
        from pipeline.system.versions import versions

        ours = versions()
        if different := [name for name in SAME if theirs[name] != ours[name]]:
            raise NodeError(", ".join(f"its {name} is {theirs[name]}, here {ours[name]}" for name in different))

    def _refuse(self, worker: "RayWorker", reason: str) -> None:
        """Gives a worker's node no more runs, and says so once."""
        with self._lock:
            if worker.node not in self._refused:
                print(f"warning: {worker.location} is not used: {reason}", file=sys.stderr)
            self._refused[worker.node] = reason

    def _take_node(self) -> dict[str, Any]:
        """A node with room for one more run of ours, waited for."""
        missed = 0.0
        while not self._stopped:
            with self._lock:
                nodes = [node for node in _nodes() if _room(node)]
                usable = [node for node in nodes if node["NodeID"] not in self._refused]
                for node in usable:
                    if self._used[node["NodeID"]] < _room(node):
                        self._used[node["NodeID"]] += 1
                        return node
                refused = {
                    f"node {node['NodeManagerAddress']}: {self._refused[node['NodeID']]}"
                    for node in nodes
                    if node["NodeID"] in self._refused
                }
            missed = 0.0 if usable else missed + 0.5
            if refused and not usable:
                raise EngineError(
                    f"no node of the cluster can be used: {'; '.join(sorted(refused))}; the same command resumes"
                )
            if missed > NODE_SECONDS:
                raise EngineError(
                    f"no node is left in the cluster since {NODE_SECONDS:.0f} s; the same command resumes"
                )
            time.sleep(0.5)
        raise EngineError("stopped")

    def _release(self, node: str) -> None:
        with self._lock:
            self._used[node] -= 1


class RayWorker:
    """An actor on a node."""

    is_here = False

    def __init__(
        self,
        node: dict[str, Any],
        release: Callable[[str], None],
        refuse: Callable[["RayWorker", str], None],
    ):
        self.node, self._release, self._refuse = node["NodeID"], release, refuse
        self.location = f"node {node['NodeManagerAddress']}"
        self._ended = threading.Lock()
        cores, gpus = int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))
        actor: Any = _Actor
        self._actor = actor.options(
            num_cpus=max(1, cores // gpus) if gpus else cores,
            num_gpus=1 if gpus else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self.node, soft=False),
        ).remote()

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the actor; `get` has its answer."""
        return getattr(self._actor, method).remote(*arguments)

    def get(self, answer: Any, timeout: float | None = None) -> Any:
        """Waits for an answer. Raises WorkerDiedError, NodeError, and GetTimeoutError after so many seconds."""
        try:
            return ray.get(answer, timeout=timeout)
        except GetTimeoutError:
            raise
        except RayError as error:
            if _is_of_node(error):
                raise NodeError(_reason(error)) from None
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise WorkerDiedError(f"the worker on {self.location} is gone: {shortened(reason, 120)}") from None

    def receive(self) -> Message:
        """Waits for the next message. Raises WorkerDiedError."""
        message = self.get(self.call("receive"))
        if isinstance(message, Failed) and message.by_node:
            reason = message.reason.partition(": ")[2]  # without the run's name
            self._refuse(self, reason)
            raise NodeRefusedError(f"{self.location}: {reason}")
        return message

    def send(self, message: Resume) -> None:
        """Hands a message to the actor."""
        self.get(self.call("send", message))

    def end(self) -> None:
        """Kills the actor, and lets another have its place."""
        if self._ended.acquire(blocking=False):
            ray.kill(self._actor)
            self._release(self.node)


def _is_of_node(error: RayError) -> bool:
    """Whether the actor's code raised it, or could not be loaded: it would again. Else the actor died."""
    return isinstance(error, RayTaskError | RuntimeEnvSetupError) or (
        isinstance(error, RayActorError) and error.actor_init_failed
    )


def _reason(error: RayError) -> str:
    """What the actor's code raised, without Ray's headers and traces."""
    if cause := getattr(error, "cause", None):
        return shortened(str(cause) if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {cause}")
    return shortened(str(error).strip().splitlines()[-1])


class _Channel:
    """A worker's side: two queues within the actor."""

    def __init__(self) -> None:
        self.out: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.into: queue.SimpleQueue[Resume] = queue.SimpleQueue()

    def send(self, message: Message) -> None:
        self.out.put(message)

    def receive(self) -> Resume:
        return self.into.get()


@ray.remote(max_restarts=0, max_task_retries=0)
class _Actor:
    """What runs on the node. The run is computed by one thread, since Keras keeps its state by thread."""

    def __init__(self) -> None:
        self._channel = _Channel()

    def versions(self) -> dict[str, str]:
        from pipeline.system.versions import versions

        return versions()

    def begin(self, job: Job) -> None:
        from pipeline.engine.worker import work

        folder = prepared_folder(job.files)  # what it raises is the node's fault
        threading.Thread(target=work, args=(job, folder, self._channel), daemon=True).start()

    def receive(self) -> Message:
        return self._channel.out.get()

    def send(self, message: Resume) -> None:
        self._channel.into.put(message)


def prepared_folder(content: Mapping[str, bytes]) -> Path:
    """A folder of this node with the verified data, fetched by the first worker, and with these files, by path.

    Raises:
        PipelineError: the data cannot be fetched.
        OSError: the files cannot be written.
    """
    from pipeline.fetch import fetch

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CACHE
    fetch(cache / "data/cifar10", os.environ.get("CIFAR10_SOURCE"))
    if not content:
        return cache
    sha = hashlib.sha256()
    for name, value in sorted(content.items()):
        sha.update(f"{name}\0{len(value)}\0".encode() + value)
    folder = cache / "teachers" / sha.hexdigest()[:16]
    data = folder / "data/cifar10"
    if not all(path.exists() for path in (*(folder / name for name in content), data)):
        with file_lock(folder, f"another worker writes {folder}", timeout=-1):  # it may have been faster
            for name, value in content.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if not (folder / name).exists():
                    files.write(folder / name, value)
            data.parent.mkdir(exist_ok=True)
            if not data.exists():
                data.unlink(missing_ok=True)  # it may lead nowhere
                data.symlink_to("../../../data/cifar10")  # relative: another node may mount the cache elsewhere
    return folder


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _room(node: dict[str, Any]) -> int:
    """How many runs a node computes at a time; each needs a core, with a GPU too."""
    resources = node["Resources"]
    return min(int(resources.get("GPU", 0)) or 1, int(resources.get("CPU", 0)))


def _check(address: str) -> None:
    """Raises PipelineError in seconds if no Ray answers there; `ray.init` would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise PipelineError(f"RAY_ADDRESS: received {address!r}; allowed: HOST:PORT, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except (OSError, OverflowError) as error:
        raise PipelineError(
            f"RAY_ADDRESS: received {address}, where nothing answers ({error}); start a cluster with "
            "`ray start --head`, or unset it"
        ) from None
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        said, failed = answer.stderr + answer.stdout, answer.returncode != 0
    except subprocess.TimeoutExpired as late:
        said, failed = (late.stderr or b"").decode(errors="replace"), True
    if "AuthToken" in said or "Unauthenticated" in said:
        raise PipelineError(
            f"RAY_ADDRESS: the cluster at {address} refuses this token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to its own"
        )
    if failed:
        raise PipelineError(
            f"RAY_ADDRESS: received {address}, which is no Ray cluster that answers within {ANSWER_SECONDS:.0f} s"
        )
