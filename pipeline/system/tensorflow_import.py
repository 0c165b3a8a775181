"""TensorFlow, imported without the notes that it prints whatever its log level is."""

import os
import re
import sys
import tempfile

_NOTE = re.compile(r"[IW]0000 |WARNING: All log messages before absl|E0000 .*failed call to cuInit")


def import_tensorflow() -> None:
    """Imports TensorFlow and lets it look for GPUs.

    Its notes are written to file descriptor 2 before logging is set up. What else is written meanwhile is passed on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    stderr = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as written:
        os.dup2(written.fileno(), 2)
        try:
            import tensorflow

            tensorflow.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            sys.stderr.writelines(line for line in written if not _NOTE.match(line))
