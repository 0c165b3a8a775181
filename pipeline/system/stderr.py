"""What libraries write to file descriptor 2, past Python's own stderr and logging."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def filtered(is_noise: Callable[[str], bool]) -> Iterator[None]:
    """Holds back what is written meanwhile, and then passes on the lines that are no noise."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            sys.stderr.writelines(line for line in written if not is_noise(line))
