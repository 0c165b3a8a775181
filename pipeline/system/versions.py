"""Versions of what computes and of what records."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """By name."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("tensorflow", "keras", "numpy", "mlflow", "dvc")
    }
