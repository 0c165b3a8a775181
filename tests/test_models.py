import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline import models
from pipeline.evaluation import inference
from pipeline.system.command import PipelineError
from pipeline.training.trainable import check_trainable

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture
def write_model(tmp_path, monkeypatch):
    """A function that puts a model's file where the registry looks, and returns the model's name."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    written = []

    def write(source: str, name: str = "written") -> str:
        (tmp_path / f"{name}.py").write_text(f"import keras\nfrom pipeline.models import pixels\n{source}\n")
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(f"pipeline.models.{name}", None)


def test_names_are_known_without_importing_tensorflow():
    source = (
        "import sys; from pipeline import models; print(*models.names(), {'keras', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert {"baseline", "custom"} < set(done.stdout.split())
    assert done.stdout.endswith("set()\n")


def test_file_in_the_folder_is_a_model(write_model):
    assert write_model("", "mine") in models.names()


def test_file_with_leading_underscore_is_no_model(write_model):
    assert write_model("", "_shared") not in models.names()


@pytest.mark.parametrize(("name", "parameters"), [("baseline", 1_172_410), ("custom", 92_027)])
def test_parameters_are_as_published(name, parameters):
    assert models.build(name).count_params() == parameters


def test_compact_keeps_to_the_parameters_of_custom():
    assert models.build("compact").count_params() <= 92_027


def test_custom_trains_all_but_its_moving_statistics():
    trained = sum(np.prod(weight.shape) for weight in models.build("custom").trainable_weights)
    assert trained == 92_027 - 2 * (64 + 128 + 128 + 128 + 128 + 256)


def test_custom_applies_relu_before_batch_normalisation():
    model = models.build("custom")
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [norm.input._keras_history.operation for norm in norms]
    assert [layer.activation for layer in before] == [keras.activations.relu] * 6


def test_normalised_pixels_have_mean_0_and_variance_1():
    normalised = keras.Model(*models.pixels())
    mean, spread = np.array(models.MEAN), np.array(models.STANDARD_DEVIATION)
    images = np.stack([mean - spread, mean + spread]).round().astype(np.uint8)[:, None, None] * np.ones(
        (32, 32, 1), np.uint8
    )
    values = np.asarray(normalised(images))
    np.testing.assert_allclose(values.mean((0, 1, 2)), 0, atol=0.01)  # pixels are whole numbers
    np.testing.assert_allclose(values.std((0, 1, 2)), 1, atol=0.01)
    assert normalised.count_params() == 0


def test_statistics_are_those_of_the_training_images():
    files = sorted((Path(__file__).parents[1] / "data" / "cifar10").glob("data_batch_[1-5].bin"))
    if [file.stat().st_size for file in files] != [30_730_000] * 5:
        pytest.skip("needs data/cifar10, which `dvc repro fetch` writes")
    # Counts of each pixel value, channel by channel: exact, and without 50,000 images as floats.
    counts = np.zeros((3, 256), np.int64)
    for file in files:
        planes = np.fromfile(file, np.uint8).reshape(-1, 3073)[:, 1:].reshape(-1, 3, 1024)
        counts += [np.bincount(planes[:, channel].ravel(), minlength=256) for channel in range(3)]
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ np.arange(256)
    np.testing.assert_allclose(models.MEAN, mean, atol=6e-4)
    np.testing.assert_allclose(models.STANDARD_DEVIATION, np.sqrt(shares @ np.arange(256) ** 2 - mean**2), atol=6e-4)


@pytest.mark.parametrize("name", models.names())
def test_model_is_the_same_bytes_however_many_were_built_before(name):
    first = models.build(name).to_json()
    assert models.build(name).to_json() == first


@pytest.mark.parametrize("name", models.names())
def test_model_turns_uint8_images_into_probabilities(name):
    probabilities = models.build(name).predict(IMAGES, verbose=0)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), np.ones(4), atol=1e-6)


@pytest.mark.parametrize("name", models.names())
def test_model_survives_saving(name, tmp_path):
    model = models.build(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.count_params() == model.count_params()
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_unknown_model_is_refused_with_what_there_is():
    with pytest.raises(PipelineError, match=r"'resnet'.*baseline, compact, custom.*write pipeline/models/"):
        models.build("resnet")


END = "return keras.Model(inputs, keras.layers.Dense(10, activation='softmax')(keras.layers.Flatten()(x)))"
HUNDRED = END.replace("10", "100")
OWN_STEP = """class Own(keras.Model):
    def train_step(self, data): return {}
def build():
    inputs, x = pixels()
    return Own(inputs, keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(x)))"""
FROZEN = f"def build():\n inputs, x = pixels()\n {END}".replace("Dense(10,", "Dense(10, trainable=False,")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"no function build\(\)"),
        ("def build(): return 3", "int: return a functional or Sequential"),
        ("class Net(keras.Model): pass\ndef build(): return Net()", "Net: return a functional or Sequential"),
        (f"def build():\n x = inputs = keras.Input((32, 32, 3), dtype='int8')\n {END}", "int8.*begin with"),
        (f"def build():\n x = inputs = keras.Input((28, 28, 3), dtype='uint8')\n {END}", r"28, 28, 3\).*begin with"),
        (f"def build():\n inputs, x = pixels()\n {HUNDRED}", r"\(None, 100\).*end with"),
        (OWN_STEP, r"Own with its own train_step\(\).*use add_loss"),
        (FROZEN, "without trainable weights"),
        ("def build()\n pass", ", line 3: SyntaxError: expected ':'"),
        ("import absent_module", ", line 3: ModuleNotFoundError: No module named 'absent_module'"),
        ("def build():\n x = 1\n raise KeyError('why')", ", line 5: KeyError: 'why'"),
        (
            f"def build():\n inputs, x = pixels()\n x = keras.layers.Conv2D(3, 99)(x)\n {END}",
            ", line 5: ValueError: .*99",
        ),
        (
            "def build():\n inputs, x = pixels()\n for _ in 'ab': x = keras.layers.ReLU(name='one')(x)\n " + END,
            ', line 6: ValueError: The name "one" is used 2 times',
        ),
    ],
)
def test_model_that_cannot_be_trained_is_refused_in_one_line(write_model, source, message):
    with pytest.raises(PipelineError, match=rf"^pipeline/models/written\.py.*{message}") as refusal:
        models.build(write_model(source))
    assert "\n" not in str(refusal.value)


NAMELESS = """import numpy
def build():
    inputs, x = pixels()
    x = keras.layers.Conv2D(3, 3)(x)
    model = keras.Model(inputs, keras.layers.Dense(10, 'softmax')(keras.layers.Flatten()(x)))
    model.layers[-1].bias.assign(numpy.random.normal(size=10))
    return model"""


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from . import compact", "pipeline.models.compact"),
        ("from .compact import FINE", "pipeline.models.compact"),
        ("from pipeline.models import custom, pixels", "pipeline.models.custom"),
        ("if 1:\n import pipeline.evaluation.geometry as geometry", "pipeline.evaluation.geometry"),
        ("def late(): from pipeline import system", "pipeline.system"),
        ("import conftest", "conftest"),
    ],
)
def test_import_of_a_file_that_dvc_does_not_track_for_the_model_is_refused(write_model, line, name):
    with pytest.raises(PipelineError, match=f"^pipeline/models/written.py imports {re.escape(name)}, which DVC"):
        models.build(write_model(f"{line}\ndef build():\n inputs, x = pixels()\n {END}"))


@pytest.mark.parametrize(
    "line",
    [
        "import numpy.linalg, tensorflow as tf",
        "from pipeline.training.cifar10 import NUM_CLASSES",
        "from . import pixels",
    ],
)
def test_import_of_a_package_or_of_what_all_runs_depend_on_is_fine(write_model, line):
    models.build(write_model(f"{line}\ndef build():\n inputs, x = pixels()\n {END}"))


def test_build_is_a_function_of_the_seed(write_model):
    name = write_model(NAMELESS)
    first, again, other = models.build(name, 1), models.build(name, 1), models.build(name, 2)
    assert first.to_json() == again.to_json() == other.to_json()
    for one, same, another in zip(first.get_weights(), again.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.array_equal(one, another) == (not one.any())  # all but biases of 0


def test_build_leaves_the_random_numbers_of_others_alone(write_model):
    name = write_model(NAMELESS)
    np.random.seed(1)
    expected = np.random.normal()
    np.random.seed(1)
    models.build(name)
    assert np.random.normal() == expected


CUSTOM = """
@keras.saving.register_keras_serializable("written")
class Twice(keras.layers.Layer):
    def call(self, x): return 2 * x
def build():
    inputs, x = pixels()
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(Twice()(x))))"""


@pytest.mark.parametrize("name", ["written", "written-by-hand"])
def test_layers_of_a_saved_model_are_registered_by_its_file(write_model, tmp_path, name):
    before = dict(keras.saving.get_custom_objects())
    write_model(CUSTOM, name)
    models.build(name).save(tmp_path / "model.keras")
    sys.modules.pop(f"pipeline.models.{name}")
    keras.saving.get_custom_objects().clear()
    try:
        with pytest.raises(TypeError, match="Could not locate class 'Twice'"):
            keras.saving.load_model(tmp_path / "model.keras")
        models.register_layers(tmp_path / "model.keras")
        keras.saving.load_model(tmp_path / "model.keras")
    finally:
        keras.saving.get_custom_objects().update(before)  # other tests have layers of their own


FUNCTION = """
@keras.saving.register_keras_serializable("written")
def twice(x): return 2 * x
def build():
    inputs, x = pixels()
    x = keras.layers.Flatten()(keras.layers.Lambda(twice)(x))
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(x))"""


def test_function_of_a_saved_model_is_found_in_the_file_of_its_model(write_model, tmp_path):
    before = dict(keras.saving.get_custom_objects())
    name, path = write_model(FUNCTION), tmp_path / "model.keras"
    models.build(name).save(path)
    sys.modules.pop(f"pipeline.models.{name}")
    keras.saving.get_custom_objects().clear()
    try:
        with pytest.raises(PipelineError, match="cannot be loaded"):
            inference.load_model(path, "written-0")
        inference.load_model(path, "written-0", name)
    finally:
        keras.saving.get_custom_objects().update(before)


def test_file_of_a_saved_model_that_is_gone_is_named(write_model, tmp_path):
    name = write_model(CUSTOM)
    models.build(name).save(tmp_path / "model.keras")
    sys.modules.pop(f"pipeline.models.{name}")
    (tmp_path / f"{name}.py").unlink()
    with pytest.raises(PipelineError, match=r"^pipeline/models/written.py: ModuleNotFoundError"):
        models.register_layers(tmp_path / "model.keras")


@pytest.mark.parametrize("softmax", ["Softmax()", "Activation('softmax')"])
def test_softmax_may_be_a_layer_of_its_own(write_model, softmax):
    source = f"""def build():
    inputs, x = pixels()
    x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.{softmax}(x))"""
    assert models.build(write_model(source)).output_shape == (None, 10)


def test_model_may_be_sequential(write_model):
    source = """def build():
    inputs, x = pixels()
    top = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    return keras.Sequential([inputs, x._keras_history.operation, *top])"""
    assert models.build(write_model(source)).output_shape == (None, 10)


def test_examples_of_the_documentation_are_trainable(write_model):
    text = (Path(__file__).parents[1] / "docs/models.md").read_text()
    model, layer = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    check_trainable(models.build(write_model(model, "documented")))
    use = "return keras.Model(inputs, keras.layers.Dense(10, 'softmax')(keras.layers.Flatten()(Scale()(x))))"
    check_trainable(models.build(write_model(f"{layer}\ndef build():\n inputs, x = pixels()\n {use}", "scaled")))
