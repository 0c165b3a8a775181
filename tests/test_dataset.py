"""Splits are disjoint, balanced and fixed; an epoch's permutation follows from seed and epoch."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import splits
from pipeline.config import params
from pipeline.system.command import PipelineError
from pipeline.training import dataset


def keys(split):
    return {image.tobytes() for image in split.images}


def test_records_are_decoded_label_then_planes(tmp_path):
    record = np.arange(3073, dtype=np.uint32).astype(np.uint8)
    record[0] = 7
    record.tofile(tmp_path / "one.bin")
    split = dataset.read_records(tmp_path, ("one.bin",))
    assert split.labels.tolist() == [7]
    row, column = 3, 5
    assert split.images[0, row, column].tolist() == [record[1 + 1024 * c + 32 * row + column] for c in range(3)]


@pytest.mark.parametrize(
    ("size", "label", "said"), [(3072, 0, "3072 bytes"), (0, 0, "0 bytes"), (3073, 10, "label 10")]
)
def test_damaged_records_are_named(tmp_path, size, label, said):
    np.full(size, label, np.uint8).tofile(tmp_path / "bad.bin")
    with pytest.raises(ValueError, match=rf"bad\.bin has .*{said}"):
        dataset.read_records(tmp_path, ("bad.bin",))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([0, 1, 3072, 3073, 3074, 6145, 6146, 9219]),
    st.binary(max_size=9),
    st.lists(st.integers(0, 255), max_size=3),
)
def test_any_file_is_decoded_or_named(tmp_path, size, more, labels):
    content = bytearray(size) + more
    for place, label in enumerate(labels):
        if place * 3073 < len(content):
            content[place * 3073] = label
    (tmp_path / "any.bin").write_bytes(content)
    given_labels = list(content[::3073])
    if content and len(content) % 3073 == 0 and max(given_labels) < 10:
        assert dataset.read_records(tmp_path, ("any.bin",)).labels.tolist() == given_labels
    else:
        with pytest.raises(ValueError, match=r"any\.bin has "):
            dataset.read_records(tmp_path, ("any.bin",))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 3073 << 28),
    ],
    ids=["folder", "pipe", "endless", "0.8 TiB"],
)
def test_what_is_no_file_of_records_is_named_before_it_is_read(project, tiny_cifar10, make):
    (project / "data/cifar10").unlink()
    shutil.copytree(tiny_cifar10, project / "data/cifar10")
    bad = project / "data/cifar10/data_batch_2.bin"
    bad.unlink()
    make(bad)
    with pytest.raises(PipelineError, match=r"data_batch_2\.bin is no regular file of at most .* `dvc repro fetch`"):
        splits.read_train_val(params.read().data)


@settings(max_examples=20, deadline=None)
@given(train=st.integers(1, 50), val=st.integers(1, 50), seed=st.integers(0, 2**31 - 1))
def test_validation_split_never_overlaps_and_is_balanced(tiny_cifar10, train, val, seed):
    train_split, val_split = dataset.read_train_val(tiny_cifar10, 10 * train, 10 * val, seed)
    assert np.bincount(train_split.labels).tolist() == [train] * 10
    assert np.bincount(val_split.labels).tolist() == [val] * 10
    assert not keys(train_split) & keys(val_split)


def test_validation_split_is_the_same_whatever_the_number_of_training_images(tiny_cifar10):
    _, some = dataset.read_train_val(tiny_cifar10, 100, 50, 0)
    _, more = dataset.read_train_val(tiny_cifar10, 900, 50, 0)
    assert np.array_equal(some.images, more.images)
    _, other = dataset.read_train_val(tiny_cifar10, 100, 50, 1)
    assert not np.array_equal(some.images, other.images)


def test_more_images_than_there_are_is_said(tiny_cifar10):
    with pytest.raises(ValueError, match="too few images for 1000 training and 10 validation"):
        dataset.read_train_val(tiny_cifar10, 1000, 10, 0)


def test_test_split_is_not_among_the_training_records(tiny_cifar10):
    train_split, val_split = dataset.read_train_val(tiny_cifar10, 900, 100, 0)
    test_split = dataset.read_test(tiny_cifar10, 200, 0)
    assert not keys(test_split) & (keys(train_split) | keys(val_split))
    assert len(dataset.read_test(tiny_cifar10, 50, 0).labels) == 50


def test_each_epoch_has_a_fresh_order_that_can_be_had_again():
    first, second = dataset.permutation(3, 1, 1000), dataset.permutation(3, 2, 1000)
    assert sorted(first) == sorted(second) == list(range(1000))
    assert np.mean(first == second) < 0.02
    assert np.array_equal(first, dataset.permutation(3, 1, 1000))
    assert np.mean(first == dataset.permutation(4, 1, 1000)) < 0.02
