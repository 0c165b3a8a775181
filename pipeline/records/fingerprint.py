"""What the weights of a training run depend on, down to the last bit: params, data, code, device, versions."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.params import Params
from pipeline.records.files import sha256

if TYPE_CHECKING:
    from pipeline.system.device import Device
    from pipeline.training.dataset import Split

PACKAGE = Path(__file__).resolve().parents[1]


def fingerprint(config: Params, run: str, machine: "Device", origin: dict[str, str]) -> dict[str, Any]:
    """Two training runs with equal fingerprints end with equal weights. A checkpoint is used for its own only.

    Args:
        config: the whole of params.yaml.
        run: its name.
        machine: what it runs on.
        origin: digests of the data, and of the teacher's weights if there is one.
    """
    return {
        **config.weight_params(run),
        **{key: value for key, value in origin.items() if key != "teacher_record_id"},
        **machine.fingerprint(),
        **code_hashes(config.recipe_of(run).model),
    }


def code_hashes(model: str) -> dict[str, str]:
    """Of the files that change weights, the same that dvc.yaml lists: `code <file>` -> digest."""
    files = [*sorted(PACKAGE.glob("training/*.py")), PACKAGE / "models/__init__.py", PACKAGE / f"models/{model}.py"]
    return {f"code {file.relative_to(PACKAGE)}": sha256(file)[:16] for file in files}


def hash_data(*splits: "Split") -> str:
    """Names exactly these images and labels, in this order."""
    sha = hashlib.sha256()
    for split in splits:
        for array in split:
            sha.update(array.tobytes())
    return sha.hexdigest()[:32]
