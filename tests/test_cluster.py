"""Which nodes of a Ray cluster get runs, and what a node prepares for one: without a cluster."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from pipeline.engine import EngineError, Failed, Job, WorkerDiedError
from pipeline.system.command import PipelineError
from pipeline.system.versions import versions

if not os.environ.get("CI"):
    pytest.importorskip("ray", reason="Ray is not installed: make setup-ray")
from ray.exceptions import ActorDiedError, RayTaskError, RuntimeEnvSetupError

from pipeline.engine import cluster

pytestmark = pytest.mark.ray
TEACHER = {"results/custom-1/model.keras": b"model", "results/custom-1/training.json": b"{}"}


def node(name="node-1", **resources):
    return {"NodeID": name, "NodeManagerAddress": name, "Alive": True, "Resources": resources}


class Nodes:
    """Ray with a node for each script. A script has what the node's actors answer: a value, or an error to raise."""

    def __init__(self, scripts):
        self.scripts = scripts
        self.kill = self.init = self.shutdown = lambda *_, **__: None

    def nodes(self):
        return [node(name, CPU=1.0) for name in self.scripts]

    def options(self, scheduling_strategy, **_):
        return SimpleNamespace(remote=lambda: Actor(self.scripts[scheduling_strategy.node_id]))

    def get(self, call, timeout=None):
        return call()


class Actor:
    def __init__(self, script):
        self.script = {"versions": [versions()], "begin": [None]} | script

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *_: partial(self.answer, self.script[method]))

    def answer(self, script):
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def engine(monkeypatch):
    """An engine of nodes with these scripts, by name."""

    def make(**scripts):
        nodes = Nodes(scripts)
        monkeypatch.setattr(cluster, "ray", nodes)
        monkeypatch.setattr(cluster, "_Actor", nodes)
        return cluster.RayEngine()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(cluster.sys, "executable", "python")
    monkeypatch.setattr(cluster, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "NodeAffinitySchedulingStrategy", lambda it, soft: SimpleNamespace(node_id=it))
    return make


JOB = Job("custom-0", None)
TRACE = (
    "Traceback (most recent call last):\n  File 'cluster.py', line 1\nModuleNotFoundError: No module named 'pydantic'"
)


def raised(cause, trace=TRACE):
    """As Ray raises what an actor raised."""
    return RayTaskError("versions", trace, cause, "ray::_Actor", 1, "10.0.0.2").as_instanceof_cause()


UNFIT = [
    ("versions", raised(PackageNotFoundError("tensorflow")), "No package metadata was found for tensorflow"),
    ("versions", ActorDiedError(RayTaskError("__init__", TRACE, None, "ray", 1, "10.0.0.2")), TRACE.splitlines()[-1]),
    ("versions", RuntimeEnvSetupError(f"Could not create the actor.\n{TRACE}\n"), TRACE.splitlines()[-1]),
    (
        "begin",
        raised(PipelineError("the data could not be fetched\n  site: no route")),
        "not be fetched site: no route",
    ),
    ("begin", raised(OSError(28, "No space left on device")), "[Errno 28] No space left on device"),
]


@pytest.mark.parametrize(("method", "error", "reason"), UNFIT)
def test_node_that_can_begin_no_run_is_refused_once_with_the_reason(engine, capsys, method, error, reason):
    ray = engine(unfit={method: [error, AssertionError("asked again")]}, good={})
    for _ in range(2):
        worker = ray.start(JOB)
        assert worker.location == "node good"
        worker.end()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: node unfit is not used: ")
    assert line.endswith(reason)
    with pytest.raises(
        EngineError, match=f"^no node of the cluster can be used: node unfit: .*{re.escape(reason)}; the same"
    ):
        engine(unfit={method: [error]}).start(JOB)


def test_worker_that_dies_before_it_begins_is_followed_by_another(engine, capsys):
    ray = engine(busy={"versions": [ActorDiedError(), versions()]})
    assert ray.start(JOB).location == "node busy"
    assert "warning: custom-0: the worker on node busy is gone: The actor died" in capsys.readouterr().err


def test_run_of_a_node_whose_disk_is_full_at_its_end_goes_to_another_node(engine, capsys):
    full = Failed("custom-0: OSError: [Errno 28] No space left on device", by_node=True)
    ray = engine(full={"receive": [full]}, good={})
    worker = ray.start(JOB)
    with pytest.raises(WorkerDiedError, match=r"^node full: OSError: \[Errno 28\] No space left on device$"):
        worker.receive()
    worker.end()
    assert ray.start(JOB).location == "node good"
    assert "warning: node full is not used: OSError: [Errno 28]" in capsys.readouterr().err


def test_failure_of_a_recipe_leaves_its_node_in_use(engine):
    failed = Failed("custom-0: the loss is nan", by_recipe=True)
    ray = engine(good={"receive": [failed]})
    for _ in range(2):
        worker = ray.start(JOB)
        assert worker.receive() == failed
        worker.end()


@pytest.mark.parametrize(
    ("resources", "room"),
    [
        ({"CPU": 8.0}, 1),
        ({"CPU": 8.0, "GPU": 4.0}, 4),
        ({"CPU": 2.0, "GPU": 4.0}, 2),
        ({"GPU": 4.0}, 0),
        ({"CPU": 0.5}, 0),
        ({}, 0),
    ],
)
def test_node_computes_as_many_runs_as_it_has_gpus_and_cores_for(resources, room):
    assert cluster._room(node(**resources)) == room


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and data that needs no fetching."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("pipeline.fetch.fetch", lambda target, source: target.mkdir(parents=True, exist_ok=True))
    return tmp_path / "home"


def test_workers_that_share_a_cache_write_a_teacher_once(cache, monkeypatch):
    written, write = [], cluster.files.write

    def write_slowly(path, content):
        written.append(path.name)
        time.sleep(0.1)
        write(path, content)

    monkeypatch.setattr(cluster.files, "write", write_slowly)
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(cluster.prepared_folder, [TEACHER] * 4))
    (folder,) = folders
    assert sorted(written) == ["model.keras", "training.json"]
    assert {name: (folder / name).read_bytes() for name in TEACHER} == TEACHER
    assert (folder / "data/cifar10").samefile(cache / "cifar10-small-models/data/cifar10")


def test_teacher_that_another_node_wrote_serves_where_the_cache_is_mounted_elsewhere(cache, monkeypatch):
    cluster.prepared_folder(TEACHER)
    elsewhere = cache.rename(cache.with_name("elsewhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere))
    monkeypatch.setattr(cluster.files, "write", None)
    assert (cluster.prepared_folder(TEACHER) / "data/cifar10").is_dir()


def test_worker_begins_no_run_without_the_data(cache, monkeypatch):
    def fetch(target, source):
        raise PipelineError("CIFAR-10 could not be fetched")

    monkeypatch.setattr("pipeline.fetch.fetch", fetch)
    with pytest.raises(PipelineError, match="could not be fetched"):
        cluster._Actor.__ray_metadata__.modified_class().begin(JOB)
