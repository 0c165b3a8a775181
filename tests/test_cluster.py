"""Which nodes of a Ray cluster get runs, and what a node prepares for one: without a cluster."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("ray", reason="Ray is not installed: make setup-ray")
from pipeline.engine import cluster

pytestmark = pytest.mark.ray
TEACHER = {"results/custom-1/model.keras": b"model", "results/custom-1/training.json": b"{}"}


def node(name="node-1", **resources):
    return {"NodeID": name, "NodeManagerAddress": name, "Alive": True, "Resources": resources}


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
