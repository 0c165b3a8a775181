"""What a microcontroller needs to run a LiteRT file, by TFLite Micro: `make setup-export`, on Linux alone."""

import re

from pipeline.system import stderr

ARENA_BYTES = 1 << 26  # to try in: far more than a microcontroller has
TOTAL = re.compile(r"\[RecordingMicroAllocator\] Arena allocation total (\d+) bytes")


def arena_bytes(content: bytes) -> int | None:
    """Bytes of memory beside the file's own; None if TFLite Micro is not installed or cannot run the file."""
    try:
        from tflite_micro import runtime
    except ImportError:
        return None
    found: list[int] = []

    def is_noise(line: str) -> bool:
        found.extend(map(int, TOTAL.findall(line)))
        return True

    with stderr.filtered(is_noise):  # it prints what it allocates, and returns it nowhere
        try:
            runtime.Interpreter.from_bytes(content, arena_size=ARENA_BYTES).print_allocations()
        except RuntimeError:
            return None
    return found[0] if found else None
