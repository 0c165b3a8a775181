"""The splits as params.yaml asks for them, from data/cifar10."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.config import params
from pipeline.records.record import DATA
from pipeline.system.command import PipelineError
from pipeline.training import dataset
from pipeline.training.cifar10 import FILE_BYTES
from pipeline.training.dataset import Split

T = TypeVar("T")


def read_train_val(data: params.Data) -> tuple[Split, Split]:
    """Training and validation split. Raises PipelineError if a file is missing or damaged."""
    return _read(dataset.read_train_val, data.train_images, data.val_images, data.split_seed)


def read_test(data: params.Data) -> Split:
    """The test split. Only evaluate and export call it. Raises as `read_train_val`."""
    return _read(dataset.read_test, data.test_images, data.split_seed)


def _read(reader: Callable[..., T], *arguments: int) -> T:
    try:
        for path in DATA.glob("*.bin"):  # a pipe never ends, a huge file fills the memory
            if path.exists() and not (path.is_file() and path.stat().st_size <= FILE_BYTES):
                raise OSError(f"{path} is no regular file of at most {FILE_BYTES:,} bytes")
        return reader(DATA, *arguments)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{error}; `dvc repro fetch` fetches the data") from None
