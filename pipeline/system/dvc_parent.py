"""A stage ends with the DVC that started it: killed, DVC leaves its stages alive."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time

import psutil

SHELLS = {"sh", "ash", "bash", "csh", "dash", "fish", "ksh", "tcsh", "zsh"}


def end_with_dvc() -> None:
    """Ends this process as SIGTERM would, once the DVC that started it is gone. Without DVC it does nothing."""
    if "DVC_STAGE" not in os.environ:
        return
    chain = [psutil.Process()]
    for ancestor in chain[0].parents():
        chain.append(ancestor)
        if ancestor.name() not in SHELLS:
            break

    def watch() -> None:
        try:
            while all(child.ppid() == parent.pid for child, parent in itertools.pairwise(chain)):
                time.sleep(1)
        except psutil.NoSuchProcess:
            pass
        with contextlib.suppress(OSError):  # the terminal may be gone as well
            print("DVC is gone", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
