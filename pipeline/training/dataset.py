"""CIFAR-10's binary records as numpy arrays: splits, and the permutation of an epoch. Pixels stay uint8."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.training.cifar10 import NUM_CLASSES, RECORD_BYTES, SIDE, TEST_FILES, TRAIN_FILES


class Split(NamedTuple):
    """Images uint8 [n, 32, 32, 3] and labels int32 [n], 0..9."""

    images: np.ndarray
    labels: np.ndarray


def read_records(folder: str | Path, files: tuple[str, ...]) -> Split:
    """Reads all records of the files, in order.

    Raises:
        ValueError: a file is not a whole number of records, or a label is not 0..9; the file is named.
    """
    images, labels = [], []
    for name in files:
        raw = np.fromfile(Path(folder) / name, np.uint8)
        if raw.size == 0 or raw.size % RECORD_BYTES:
            raise ValueError(f"{Path(folder) / name} has {raw.size} bytes, not a multiple of {RECORD_BYTES}")
        records = raw.reshape(-1, RECORD_BYTES)
        if records[:, 0].max() >= NUM_CLASSES:
            raise ValueError(
                f"{Path(folder) / name} has a label {records[:, 0].max()}; labels are 0 to {NUM_CLASSES - 1}"
            )
        labels.append(records[:, 0].astype(np.int32))
        images.append(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    return Split(np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels))


def read_train_val(folder: str | Path, train_images: int, val_images: int, split_seed: int) -> tuple[Split, Split]:
    """Training and validation split: class-balanced, disjoint, in the order of the records.

    The validation split is drawn first, so it does not depend on `train_images`.

    Raises:
        ValueError: as `read_records`, or a class has too few images.
    """
    whole = read_records(folder, TRAIN_FILES)
    ranks = _rank_within_class(whole.labels, split_seed)
    val_rank, train_rank = val_images // NUM_CLASSES, train_images // NUM_CLASSES
    if np.bincount(whole.labels, minlength=NUM_CLASSES).min() < val_rank + train_rank:
        raise ValueError(f"{folder} has too few images for {train_images} training and {val_images} validation images")
    is_val = ranks < val_rank
    is_train = ~is_val & (ranks < val_rank + train_rank)
    return (
        Split(whole.images[is_train], whole.labels[is_train]),
        Split(whole.images[is_val], whole.labels[is_val]),
    )


def read_test(folder: str | Path, test_images: int, split_seed: int) -> Split:
    """The test split, or a class-balanced part of it, for evaluate and export alone. Raises as `read_train_val`."""
    whole = read_records(folder, TEST_FILES)
    if np.bincount(whole.labels, minlength=NUM_CLASSES).min() < test_images // NUM_CLASSES:
        raise ValueError(f"{folder} has too few images for {test_images} test images")
    chosen = _rank_within_class(whole.labels, split_seed) < test_images // NUM_CLASSES
    return Split(whole.images[chosen], whole.labels[chosen])


def _rank_within_class(labels: np.ndarray, split_seed: int) -> np.ndarray:
    """Each image's rank, from 0, in a random permutation of its class."""
    ranks = np.empty(len(labels), np.int64)
    for label in range(NUM_CLASSES):
        members = np.flatnonzero(labels == label)
        ranks[np.random.default_rng([split_seed, label]).permutation(members)] = np.arange(len(members))
    return ranks


def permutation(seed: int, epoch: int, images: int) -> np.ndarray:
    """Indices of all images in the order of one epoch, int32 [images]: a function of its arguments alone."""
    return np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)
