"""What every `python -m pipeline.<verb>` has in common: how it starts and how it fails."""

import os
import sys
from collections.abc import Callable


class PipelineError(Exception):
    """A problem that the user can mend. Shown as one line, which names the value received and the fix."""


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a `PipelineError` becomes one line on stderr and exit status 1, never a stack trace."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes are not ours to print
    try:
        main()
    except PipelineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
