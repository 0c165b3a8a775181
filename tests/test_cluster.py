"""Which nodes of a Ray cluster get runs, and what a node prepares for one: without a cluster."""

import os

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("ray", reason="Ray is not installed: make setup-ray")
from pipeline.engine import cluster

pytestmark = pytest.mark.ray


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
