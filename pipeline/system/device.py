"""What a training run computes on: device, precision, replicas. Asked for in params.yaml, resolved here."""

import os
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from pipeline.system.command import PipelineError, RecipeError
from pipeline.system.versions import versions

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class Device(NamedTuple):
    """The resolved device: `CPU` or GPU names, Keras dtype policy, strategy if there are several GPUs, XLA or not."""

    name: str
    processor: str
    threads: int
    precision: str
    policy: str
    strategy: tf.distribute.Strategy | None
    xla: bool

    def fingerprint(self) -> dict[str, str | int]:
        """What weights depend on, down to the last bit, beside params, data and code; flat."""
        return {
            "device": self.name,
            "processor": self.processor,
            "processor_model": processor_model(),
            "instruction_sets": " ".join(sorted(_instruction_sets())),
            "threads": self.threads,
            "precision": self.precision,
            "xla": "on" if self.xla else "off",
            "onednn": "on" if os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("1", "true") else "off",
            **{name: number for name, number in versions().items() if name in ("tensorflow", "keras", "numpy")},
        }


def resolve(device: str = "auto", precision: str = "auto", xla: str = "auto") -> Device:
    """Sets TensorFlow up for a device and a precision; call it before anything else of TensorFlow.

    Args:
        device: auto (every GPU if there is one), cpu or gpu.
        precision: auto (bfloat16 where the processor has instructions for it, float16 on one older GPU with tensor
            cores, else float32), float32, bfloat16 or float16.

    Raises:
        PipelineError: `gpu` is asked for and there is none.
    """
    gpus = [] if device == "cpu" else tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise PipelineError(
            "train.device: received gpu, but TensorFlow sees no GPU; "
            "use auto or cpu, or install the CUDA build with `make setup GPU=1`"
        )
    if not gpus:
        tf.config.set_visible_devices([], "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        tf.config.experimental.enable_op_determinism()  # on a CPU, what is used here repeats itself without
    if precision == "auto":
        precision = _fastest_precision(gpus)
    if precision == "float16" and not gpus:
        raise RecipeError("precision: received float16, which is slow and inexact on a CPU; use auto or bfloat16")
    if precision == "float16" and len(gpus) > 1:
        # Keras asks one replica alone whether the loss scale was too high.
        raise RecipeError("precision: received float16, which several GPUs cannot train in; use bfloat16 or float32")
    details = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return Device(
        name=", ".join(details) or "CPU",
        processor=processor(),
        threads=threads(),
        precision=precision,
        policy=POLICIES[precision],
        strategy=tf.distribute.MirroredStrategy() if len(gpus) > 1 else None,
        xla=bool(gpus) if xla == "auto" else xla == "on",
    )


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_model() -> str:
    """The processor's family and model, as numbers: one name stands for many."""
    return " ".join(filter(None, map(_cpuinfo, ("cpu family", "model", "CPU implementer", "CPU part"))))


def _instruction_sets() -> set[str]:
    """Those that numerical libraries choose their kernels by, and so how they round."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # x86, Arm
    return {flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sse4", "asimd", "sve", "bf16", "i8mm"))}


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fastest_precision(gpus: list) -> str:
    if gpus:
        capability = min(
            tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus
        )
        tensor_cores = capability >= (7, 0) and len(gpus) == 1  # float16 is for one GPU, see `resolve`
        return "bfloat16" if capability >= (8, 0) else "float16" if tensor_cores else "float32"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & _instruction_sets() else "float32"


@cache
def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next(
        (value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key), ""
    )
