"""A Keras model as a `.keras` file whose bytes are a function of the model alone."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.records import files

if TYPE_CHECKING:
    import keras


def save(model: "keras.Model", path: Path) -> None:
    """Saves a model whole or not at all. Equal weights give equal bytes.

    A `.keras` file is a zip whose metadata and entries carry the time of writing, which is set to a constant.
    """
    import keras

    written, content = path.with_name(".written.keras"), io.BytesIO()
    try:
        keras.saving.save_model(model, written)
        with zipfile.ZipFile(written) as source, zipfile.ZipFile(content, "w") as target:
            for name in source.namelist():
                entry = source.read(name)
                if name == "metadata.json":
                    entry = json.dumps(json.loads(entry) | {"date_saved": "1980-01-01@00:00:00"}).encode()
                if name == "config.json":
                    entry = _with_counted_ids(entry)
                target.writestr(zipfile.ZipInfo(name), entry)
    finally:
        written.unlink(missing_ok=True)
    files.write(path, content.getvalue())


def _with_counted_ids(config: bytes) -> bytes:
    """Keras numbers objects that layers share by their address in memory; here they are counted from 0."""
    counted: dict[bytes, int] = {}

    def count(found: re.Match) -> bytes:
        return b'"shared_object_id": %d' % counted.setdefault(found[1], len(counted))

    return re.sub(rb'"shared_object_id": (\d+)', count, config)
