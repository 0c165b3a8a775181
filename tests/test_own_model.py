"""A model with a custom layer, from its file to what reads its records, each stage in a process of its own."""

import re
import shlex

import pytest
import yaml
from conftest import sh, small_clone

pytestmark = pytest.mark.slow

SOURCE = """
import keras
from keras import layers
from pipeline.models import pixels

@keras.saving.register_keras_serializable("own")
class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
    def call(self, x):
        return x * self.scale

def build():
    inputs, x = pixels()
    x = layers.GlobalAveragePooling2D()(Scale()(layers.Conv2D(4, 3, strides=4)(x)))
    return keras.Model(inputs, layers.Dense(10, "softmax")(x))
"""
LOAD = """
import sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
(model,) = mlflow.search_logged_models(experiments, output_format="list")
outputs = mlflow.pyfunc.load_model(model.model_uri).predict(np.zeros((1, 32, 32, 3), np.uint8))
assert abs(outputs.sum() - 1) < 1e-5, outputs
assert not [name for name in sys.modules if name.startswith("pipeline")], "loaded with the repository"
"""


def test_model_with_a_custom_layer_is_trained_evaluated_and_loaded_from_mlflow(tmp_path, environment):
    clone, away, temporary = (tmp_path / name for name in ("clone", "away", "temporary"))
    for folder in (clone, away, temporary):
        folder.mkdir()
    small_clone(clone, environment)
    (clone / "pipeline/models/own.py").write_text(SOURCE)
    tree = yaml.safe_load((clone / "params.yaml").read_text())
    tree["recipes"]["custom"]["model"] = tree["runs"]["custom-0"]["model"] = "own"
    (clone / "params.yaml").write_text(yaml.safe_dump(tree))
    store = f"sqlite:///{tmp_path}/mlflow.db"
    environment = environment | {"MLFLOW_TRACKING_URI": store, "TMPDIR": str(temporary)}
    sh("python -m pipeline.fetch", clone, environment)
    sh("python -m pipeline.train custom-0", clone, environment)
    written = sh("python -m pipeline.evaluate custom-0", clone, environment)
    assert re.search(r"multiply-adds", written)
    assert list(temporary.iterdir()) == []
    (away / "load.py").write_text(LOAD)
    sh(f"python load.py {shlex.quote(str(store))}", away, environment)
