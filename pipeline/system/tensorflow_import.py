"""TensorFlow, imported without the notes that it prints whatever its log level is."""

import os
import platform
import re

from pipeline.system import stderr

_NOTE = re.compile(r"[IW]0000 |WARNING: All log messages before absl|E0000 .*failed call to cuInit")


def import_tensorflow() -> None:
    """Imports TensorFlow and lets it look for GPUs.

    Its notes are written to file descriptor 2 before logging is set up. What else is written meanwhile is passed on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if platform.machine() in ("x86_64", "AMD64"):
        # By default on only where a processor has 8-bit or bfloat16 instructions; one with AVX2 alone (Zen 3) trained
        # 2.7 to 3 times as fast with it.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with stderr.filtered(lambda line: bool(_NOTE.match(line))):
        import tensorflow

        tensorflow.config.list_physical_devices()
