"""A checkpoint is used for a training of the same params, data, machine and code only."""

from types import SimpleNamespace

import pytest

from pipeline.config import params
from pipeline.records import fingerprint

MACHINE = {"precision": "float32", "threads": 2}
ORIGIN = {"data_hash": "a", "teacher_record_id": "b", "teacher_weights_digest": "c"}


def mark(tree, origin=ORIGIN, **machine):
    """The fingerprint of custom-0."""
    computer = SimpleNamespace(fingerprint=lambda: MACHINE | machine)
    return fingerprint.fingerprint(params.check(tree), "custom-0", computer, origin)


def test_what_weights_depend_on_changes_it(tree, monkeypatch):
    first = mark(tree)
    assert mark(tree) == first
    assert mark(tree, precision="bfloat16") != first
    for key in ("data_hash", "teacher_weights_digest"):
        assert mark(tree, ORIGIN | {key: "other"}) != first
    for section, key, value in (("data", "train_images", 40_000), ("train", "xla", "on")):
        assert mark(tree | {section: tree[section] | {key: value}}) != first
    recipe = tree["recipes"]["custom"] | {"learning_rate": 0.123}
    assert mark(tree | {"recipes": tree["recipes"] | {"custom": recipe}}) != first
    monkeypatch.setattr(fingerprint, "sha256", lambda path: "0" * 64)  # of changed files
    assert mark(tree) != first


@pytest.mark.parametrize("recipe", ["baseline", "compact"])
def test_what_they_do_not_depend_on_does_not(tree, recipe):
    first = mark(tree)
    assert mark(tree | {"data": tree["data"] | {"test_images": 10}}) == first
    assert mark(tree, ORIGIN | {"teacher_record_id": "the same weights, recorded again"}) == first
    tree["recipes"][recipe]["learning_rate"] = 0.123
    assert mark(tree) == first
