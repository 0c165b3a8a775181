"""Converted files: what they answer, what is recorded of them, and what a model that cannot be converted is told."""

import json
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT
from factories import EvaluateStage, tiny_model

from pipeline import export
from pipeline.config import params
from pipeline.conversion import exported, litert, micro, rewrite
from pipeline.conversion.interpreter import LiteRTModel
from pipeline.records import exports, files
from pipeline.system import device
from pipeline.system.command import PipelineError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


def model_of(*middle, name="small"):
    """The layers between pixels and classes, with weights and moving statistics as after a training run."""
    import keras

    inputs = keras.Input((32, 32, 3), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 255, name="scaled")(inputs)
    for layer in middle:
        x = layer(x)
    if len(x.shape) > 2:
        x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="classes")(x), name=name)
    random = np.random.default_rng(1)
    model.set_weights(
        [random.uniform(0.2, 1, weight.shape) * (-1) ** np.arange(weight.shape[-1]) for weight in model.get_weights()]
    )
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([np.abs(weight) for weight in layer.get_weights()])
    return model


def probabilities(model, images=IMAGES):
    return np.concatenate([model(image[None].astype(np.float32)).numpy() for image in images])


def before_norm(kind):
    """Layers whose norm follows a ReLU: the kernel and the ReLU are one layer, or two."""
    from keras import layers

    convolution = {
        "Conv2D": lambda **options: layers.Conv2D(6, 3, name="kernel", **options),
        "no bias": lambda **options: layers.Conv2D(6, 3, use_bias=False, name="kernel", **options),
        "DepthwiseConv2D": lambda **options: layers.DepthwiseConv2D(3, depth_multiplier=2, name="kernel", **options),
        "SeparableConv2D": lambda **options: layers.SeparableConv2D(6, 3, name="kernel", **options),
        "Dense": lambda **options: layers.Dense(6, name="kernel", **options),
    }[kind]
    return [convolution(activation="relu")], [convolution(), layers.ReLU(name="relu")]


@pytest.mark.parametrize("kind", ["Conv2D", "no bias", "DepthwiseConv2D", "SeparableConv2D", "Dense"])
def test_scale_moves_before_the_relu_and_changes_no_output(kind, tensorflow):
    from keras import layers

    for middle in before_norm(kind):
        model = model_of(*middle, layers.BatchNormalization(name="norm"))
        rewritten = rewrite.for_integers(model)
        assert not np.allclose(
            rewritten.get_layer("kernel").get_weights()[-1], model.get_layer("kernel").get_weights()[-1]
        )
        assert rewritten.get_layer("norm").get_weights() == []
        np.testing.assert_allclose(probabilities(rewritten), probabilities(model), atol=1e-5)


@pytest.mark.parametrize("why", ["a negative scale", "a bounded ReLU", "no ReLU", "two users", "another axis"])
def test_scale_stays_where_moving_it_would_change_the_output(why, tensorflow):
    import keras
    from keras import layers

    activation = {"a bounded ReLU": "relu6", "no ReLU": None}.get(why, "relu")
    norm = layers.BatchNormalization(axis=1 if why == "another axis" else -1, name="norm")
    add = layers.Add(name="sum")
    user = (lambda x: add([norm(x), x])) if why == "two users" else norm
    model = model_of(layers.Conv2D(6, 3, activation=activation, name="kernel"), user)
    if why == "a negative scale":
        gamma, *others = norm.get_weights()
        norm.set_weights([gamma * (-1) ** np.arange(6), *others])
    rewritten = rewrite.for_integers(model)
    assert isinstance(rewritten.get_layer("norm"), keras.layers.BatchNormalization)
    np.testing.assert_allclose(probabilities(rewritten), probabilities(model), atol=1e-6)


def test_files_answer_as_the_model_and_repeat(tensorflow):
    from keras import layers

    model = model_of(layers.Conv2D(6, 3, activation="relu", name="kernel"), layers.BatchNormalization(name="norm"))
    float32, int8 = litert.float32(model), litert.int8(model, IMAGES)
    np.testing.assert_allclose(LiteRTModel(float32, 1).predict(IMAGES), probabilities(model), atol=1e-5)
    np.testing.assert_allclose(LiteRTModel(int8, 1).predict(IMAGES), probabilities(model), atol=0.05)
    assert b"CAST" not in int8
    assert litert.float32(model) == float32
    assert litert.int8(model, IMAGES) == int8


def test_int8_file_holds_integers_alone(tensorflow):
    from ai_edge_litert.interpreter import Interpreter
    from keras import layers

    middle = layers.SeparableConv2D(6, 3, activation="relu", name="kernel"), layers.BatchNormalization(name="norm")
    interpreter = Interpreter(model_content=litert.int8(model_of(*middle), IMAGES))
    tensors = interpreter.get_tensor_details()
    assert {tensor["dtype"] for tensor in tensors} <= {np.uint8, np.int8, np.int32}
    assert interpreter.get_input_details()[0]["quantization"] == (1.0, 0)  # so that pixels pass as they are


def models_of_users():
    """Kinds of models that users write, by name, each as a function."""
    import keras
    from keras import layers

    def attention(x):
        x = layers.Reshape((64, 6), name="patches")(layers.Conv2D(6, 4, strides=4, name="embed")(x))
        y = layers.LayerNormalization(name="norm")(x)
        return layers.Flatten(name="flat")(x + layers.MultiHeadAttention(2, 3, name="attention")(y, y))

    def nested(x):
        inner = keras.Sequential([layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization()], name="inner")
        return inner(x)

    def shared(x):
        kernel = layers.Conv2D(3, 3, padding="same", activation="relu", name="kernel")
        norm = layers.BatchNormalization(name="norm")
        return norm(kernel(norm(kernel(x))))

    return {
        "attention": lambda: model_of(attention),
        "nested": lambda: model_of(nested),
        "shared": lambda: model_of(shared),
        "random": lambda: model_of(layers.RandomFlip(name="flip"), layers.GaussianNoise(0.1, name="noise")),
        "enlarging": lambda: model_of(layers.Conv2DTranspose(3, 3, strides=2, activation="gelu", name="enlarge")),
        "float32 pixels": lambda: keras.Sequential(
            [keras.Input((32, 32, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10, "softmax")]
        ),
    }


@pytest.mark.parametrize("kind", ["attention", "nested", "shared", "random", "enlarging", "float32 pixels"])
def test_any_model_is_exported(kind, tensorflow):
    model = models_of_users()[kind]()
    expected = np.concatenate([model(image[None].astype(np.float32), training=False).numpy() for image in IMAGES])
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(LiteRTModel(litert.float32(model), 1).predict(IMAGES), expected, atol=1e-4)
    int8 = LiteRTModel(litert.int8(model, IMAGES), 1).predict(IMAGES)
    assert np.mean(int8.argmax(axis=1) == expected.argmax(axis=1)) > 0.6


def model_without_operation():
    import keras

    class Inverse(keras.Layer):
        def call(self, x):
            return keras.ops.erfinv(keras.ops.tanh(x))

    return model_of(keras.layers.Conv2D(4, 3, name="kernel"), Inverse(name="inverse"))


def test_layer_that_cannot_be_converted_is_named(tensorflow, capfd):
    model = model_without_operation()
    for convert in (lambda: litert.float32(model), lambda: litert.int8(model, IMAGES)):
        with pytest.raises(litert.ConversionError) as caught:
            convert()
        assert str(caught.value) == "layer 'inverse' uses Erfinv, for which LiteRT has no operation"
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def stage(tmp_path, monkeypatch, tensorflow):
    """As for evaluate; the tiny model's file is there, and the int8 file may be of any size."""
    stage = EvaluateStage(tmp_path, monkeypatch)
    change_export(calibration_images=10, max_int8_loss=1.0, runs={"custom-0": {"max_bytes": 10**6}})
    monkeypatch.setattr(sys, "argv", ["export", "custom-0"])
    stage.save(tiny_model())
    return stage


def change_export(**values):
    tree = params.parse("params.yaml")
    tree["export"] |= values
    with open("params.yaml", "w") as file:
        yaml.safe_dump(tree, file)


def test_export_is_of_the_files_that_it_writes(stage):
    from pipeline.training import dataset

    export.main()
    results = stage.read("export/export.json")
    config = params.read().data
    test = dataset.read_test("data/cifar10", config.test_images, config.split_seed)
    _, val = dataset.read_train_val("data/cifar10", config.train_images, config.val_images, config.split_seed)
    for kind, name in exports.FILES.items():
        content = (stage.results / "export" / name).read_bytes()
        assert (results[kind]["bytes"], results[kind]["sha256"]) == (len(content), files.sha256_of(content))
        runs = LiteRTModel(content, 1)
        for split, images in (("val", val), ("test", test)):
            right = runs.predict(images.images).argmax(axis=1) == images.labels
            assert results[kind][f"{split}_accuracy"] == round(right.mean(), 6)
    assert results["float32"]["test_agreement"] == 1
    assert results["float32"]["test_largest_difference"] < 1e-5
    lost = results["keras"]["test_accuracy"] - results["int8"]["test_accuracy"]
    assert np.mean(list(results["int8"]["test_recall_lost"].values())) == pytest.approx(lost, abs=1e-6)
    assert results["violations"] == []
    speed = stage.read("export/speed.json")
    assert set(speed["latency_ms"]) == {"float32", "int8"}
    assert (speed["processor"], speed["processor_model"]) == (device.processor(), device.processor_model())


def test_equal_weights_give_equal_results(stage):
    export.main()
    first = {path.name: path.read_bytes() for path in (stage.results / "export").iterdir()}
    export.main()
    second = {path.name: path.read_bytes() for path in (stage.results / "export").iterdir()}
    assert {name for name in first if first[name] != second[name]} <= {"speed.json"}


def test_limits_that_are_not_kept_are_named(stage, capsys):
    change_export(runs={"custom-0": {"max_bytes": 1_000}})
    export.main()
    (violation,) = stage.read("export/export.json")["violations"]
    size = (stage.results / "export/model.int8.tflite").stat().st_size
    assert violation == f"the int8 file has {size:,} bytes; max_bytes is 1,000"
    assert violation in capsys.readouterr().out


def test_loss_of_int8_is_limited_on_the_validation_split():
    config = params.parse(ROOT / "params.yaml")["export"] | {"max_int8_loss": 0.003}
    limits = params.Export.model_validate(config)
    kept = {"float32": {"val_accuracy": 0.9, "test_accuracy": 0.9}, "int8": {"val_accuracy": 0.897, "bytes": 1}}
    assert export.violations(limits, "custom-0", kept) == []
    kept["int8"]["val_accuracy"] = 0.8969
    assert export.violations(limits, "custom-0", kept) == [
        "int8 loses 0.31 points of validation accuracy; max_int8_loss is 0.3 points"
    ]


@pytest.mark.parametrize("reason", ["layer 'x' uses Y", "LiteRT refuses the file"])
def test_model_without_an_int8_file_is_exported_without_one(reason, stage, monkeypatch, capsys):
    (stage.results / "export").mkdir()
    (stage.results / "export/model.int8.tflite").write_text("of an earlier model")

    def fail(*_):
        if "refuses" in reason:
            return b"no file"
        raise litert.ConversionError(reason)

    monkeypatch.setattr(litert, "int8", fail)
    export.main()
    results = stage.read("export/export.json")
    assert results["int8"] is None
    assert results["without_int8"].startswith(reason)
    assert not (stage.results / "export/model.int8.tflite").exists()
    assert f"without int8: {reason}" in capsys.readouterr().out


def test_model_that_cannot_be_exported_leaves_what_was_there(stage):
    export.main()
    before = {path.name: path.read_bytes() for path in (stage.results / "export").iterdir()}
    stage.save(tiny_model())
    from pipeline.evaluation import inference

    with (
        pytest.MonkeyPatch.context() as patched,
        pytest.raises(PipelineError, match="custom-0 cannot be exported: layer 'inverse'"),
    ):
        patched.setattr(inference, "load_model", lambda *_: model_without_operation())
        export.main()
    assert {path.name: path.read_bytes() for path in (stage.results / "export").iterdir()} == before


def test_files_are_read_again_or_refused_in_one_line(stage):
    with pytest.raises(
        PipelineError, match=r"export\.json is not here: make it with `python -m pipeline\.export custom-0`"
    ):
        exported.load("custom-0")
    export.main()
    expected = exported.load("custom-0").predict(IMAGES)
    np.testing.assert_allclose(exported.load("custom-0", "int8").predict(IMAGES), expected, atol=0.2)
    path = stage.results / "export/model.tflite"
    content = path.read_bytes()
    for damaged in (b"", content[:500], content[::-1]):
        path.write_bytes(damaged)
        with pytest.raises(PipelineError, match=r"model\.tflite cannot be used") as caught:
            exported.load("custom-0")
        assert "\n" not in str(caught.value)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="odel"):
        LiteRTModel(content[: len(content) // 2], 1)
    (stage.results / "model.keras").write_bytes(b"another")
    with pytest.raises(PipelineError, match="of an earlier model"):
        exported.load("custom-0")


def test_onnx_answers_as_the_model_or_says_what_is_missing(stage, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", "custom-0", "--format", "onnx"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", None)
        patched.setitem(sys.modules, "tf2onnx", None)
        with pytest.raises(PipelineError, match="is missing: install it with `make setup-export`"):
            export.main()
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    export.main()
    assert "exports/custom-0.onnx" in capsys.readouterr().out
    assert (stage.folder / "exports/custom-0.onnx").exists()


def test_onnx_keeps_no_statistics_as_inputs(tensorflow):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    import keras

    from pipeline import models
    from pipeline.conversion import onnx_file

    inputs, x = models.pixels()
    classes = keras.layers.Dense(10, activation="softmax", name="classes")(keras.layers.Flatten(name="flat")(x))
    model = keras.Model(inputs, classes)
    onnx = onnx_file.OnnxModel(onnx_file.convert(model), 1)
    np.testing.assert_allclose(onnx.predict(IMAGES), probabilities(model), atol=1e-5)


@pytest.mark.parametrize("run", params.parse(ROOT / "params.yaml")["export"]["runs"])
def test_recorded_arena_is_what_tflite_micro_needs(run):
    pytest.importorskip("tflite_micro")
    recorded = json.loads((ROOT / f"results/{run}/export/export.json").read_text())["int8"]["arena_bytes"]
    content = (ROOT / f"results/{run}/export/model.int8.tflite").read_bytes()
    assert micro.arena_bytes(content) == pytest.approx(
        recorded, rel=0.02
    )  # other versions need some bytes more or less


def test_file_that_tflite_micro_cannot_run_has_no_arena(monkeypatch, capfd):
    int8 = (ROOT / "results/compact-0/export/model.int8.tflite").read_bytes()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tflite_micro", None)
        assert micro.arena_bytes(int8) is None
    pytest.importorskip("tflite_micro")
    monkeypatch.setattr(micro, "ARENA_BYTES", 1 << 16)
    assert micro.arena_bytes(int8) is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("run", params.parse(ROOT / "params.yaml")["export"]["runs"])
def test_recorded_files_keep_their_limits(run):
    results = json.loads((ROOT / f"results/{run}/export/export.json").read_text())
    assert results["violations"] == []
    assert results["float32"]["test_agreement"] >= 0.9998  # of two nearly equal probabilities either may be the higher
    assert results["float32"]["bytes"] == (ROOT / f"results/{run}/export/model.tflite").stat().st_size


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        (
            {"custom-7": {"max_bytes": 1}},
            "export.runs.custom-7: received a run that is not in runs; allowed: baseline-0, ",
        ),
        ({"custom-1": {"max_bytes": 1}}, "another run than the recipe's lowest seed; allowed: custom-0"),
        ({"custom-0": {}}, "export.runs.custom-0.max_bytes is missing"),
    ],
)
def test_exported_runs_are_the_lowest_seeds_of_the_list(tree, runs, says):
    tree["runs"]["custom-1"] = tree["runs"]["custom-0"] | {"seed": 1}
    tree["export"]["runs"] = runs
    with pytest.raises(PipelineError) as caught:
        params.check(tree)
    assert says in str(caught.value)
