"""A training run, computed by a worker and recorded by this process.

worker.py: what a worker does. local.py, cluster.py: workers here and on a Ray cluster. driver.py: hands runs out and
records their epochs. Workers read the data and nothing else, and reach neither the results nor the MLflow store.
"""

import argparse
import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.system.command import PipelineError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.config.params import Params


class Job(NamedTuple):
    """A training run to compute.

    Attributes:
        run: its name.
        config: the whole of params.yaml.
        files: of the project, by path, that it needs besides the data: those of its teacher.
    """

    run: str
    config: "Params"
    files: Mapping[str, bytes] = {}


class Begun(NamedTuple):
    """A worker is ready for the first step; it waits for a `Resume`. The attributes are those of `train.Prepared`."""

    fingerprint: dict[str, Any]
    environment: dict[str, Any]
    layers: str
    title: str


class Resume(NamedTuple):
    """The state to resume from; epoch 0 is the beginning. The attributes are those of `loop.State`."""

    epoch: int
    values: list["np.ndarray"]


class Steps(NamedTuple):
    """Steps are done."""

    epoch: int
    done: int
    steps: int
    loss: float


class Epoch(NamedTuple):
    """An epoch is finished: its row of the record, and the arrays of its checkpoint."""

    metrics: dict[str, float]
    images_per_second: float
    weights_digest: str
    values: list["np.ndarray"]


class Finished(NamedTuple):
    """The last epoch is finished; `model` is the content of model.keras."""

    model: bytes


class Failed(NamedTuple):
    """The run cannot be computed.

    Attributes:
        reason: in one line.
        trace: of Python's stack, where it is of use.
        by_recipe: whether the recipe's values are at fault, so that no worker can compute it.
        by_node: whether the machine is at fault, its full disk for example; `reason` begins with the run's name.
    """

    reason: str
    trace: str = ""
    by_recipe: bool = False
    by_node: bool = False


Message = Begun | Steps | Epoch | Finished | Failed


class WorkerDiedError(Exception):
    """A worker ended without having said why. Another one may resume its run."""


class NodeRefusedError(WorkerDiedError):
    """A worker ended for a reason of its node's, which gets no more runs. It says nothing of the run."""


class EngineError(PipelineError):
    """There can be no worker, for this run or any other."""


class Channel(Protocol):
    """A worker's side of the connection."""

    def send(self, message: Message) -> None:
        """Hands a message to the driver."""

    def receive(self) -> Resume:
        """Waits for the driver's."""


class Worker(Protocol):
    """The driver's side: a worker that computes one run."""

    location: str  # as messages name it
    is_here: bool  # on this machine

    def receive(self) -> Message:
        """Waits for the next message. Raises WorkerDiedError."""

    def send(self, message: Resume) -> None:
        """Hands a message to the worker. Raises WorkerDiedError."""

    def end(self) -> None:
        """Ends the worker, whatever it does. May be called by any thread, and again."""


class Engine(Protocol):
    """Where workers are."""

    parallel: int  # runs at a time

    def start(self, job: Job) -> Worker:
        """A new worker. Raises EngineError if there can be none."""

    def stop(self) -> None:
        """Ends the wait of those who call `start`."""

    def close(self) -> None:
        """Ends all that was started."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--engine` and `--parallel`, for commands that open an engine."""
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="processes here (the default), or the Ray cluster that RAY_ADDRESS names",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="N",
        help="runs at a time; default: 1 here, as many as fit on a cluster. Here, each gets its share of the cores",
    )


@contextlib.contextmanager
def opened(name: str, parallel: int | None) -> Iterator[Engine]:
    """The engine of this name, closed afterwards. `parallel`: runs at a time, None for its default.

    Raises:
        PipelineError: it cannot be reached, or has no room for as many.
    """
    engine: Engine
    if name == "ray":
        if not os.environ.get("RAY_ADDRESS"):
            # A Ray of our own listens on all interfaces. It reads these when it is imported.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        from pipeline.engine.cluster import RayEngine

        engine = RayEngine(parallel)
    else:
        from pipeline.engine.local import LocalEngine

        engine = LocalEngine(Path.cwd(), 1 if parallel is None else parallel)
    try:
        yield engine
    finally:
        engine.close()
