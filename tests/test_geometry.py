import io
import json
import subprocess
import sys

import keras
import model_kinds
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import layers
from rich.console import Console

from pipeline import geometry as command
from pipeline import models
from pipeline.evaluation.geometry import as_rows, geometry, total_multiply_adds

# Output size and receptive field, line by line as the published text annotates its network.
PUBLISHED = [
    ((32, 32, 64), 3),
    ((32, 32, 128), 5),
    ((32, 32, 32), 5),
    ((16, 16, 32), 6),
    ((16, 16, 128), 10),
    ((16, 16, 128), 14),
    ((16, 16, 64), 14),
    ((8, 8, 64), 16),
    ((8, 8, 128), 24),
    ((8, 8, 256), 32),
    ((8, 8, 10), 32),
    ((1, 1, 10), None),
]


def rows_of(network, size=(32, 32, 3)):
    """Geometry of the model that `network` builds, a function from its input to its output."""
    inputs = keras.Input(size)
    return geometry(keras.Model(inputs, network(inputs)))


def test_custom_is_as_published_line_by_line():
    rows = [row for row in geometry(models.build("custom")) if row.type != "BatchNormalization"]
    assert [(row.output_size, row.receptive_field) for row in rows] == PUBLISHED


def test_baseline_by_hand():
    rows = geometry(models.build("baseline"))
    assert [row.output_size[0] for row in rows] == [32, 30, 15, 15, 13, 6, 6, 4, 2, 1, 1, 1, 1]
    assert [row.receptive_field for row in rows] == [3, 5, 6, 10, 14, 16, 24, 32, 36, None, None, None, None]


@pytest.mark.parametrize("name", models.names())
def test_parameters_add_up_to_those_of_the_model(name):
    model = models.build(name)
    assert sum(row.parameters for row in geometry(model)) == model.count_params()


def test_residual_branch_with_stride_and_dilation():
    def network(x):
        x = layers.Conv2D(8, 3, strides=2, padding="same")(x)  # sees 0..2 of 32: the odd pixel of padding comes last
        branch = layers.Conv2D(8, 3, dilation_rate=2, padding="same")(x)  # from 2 positions of 2 pixels before: -4..6
        x = layers.Add()([branch, layers.Conv2D(8, 1)(x)])
        return layers.Conv2D(8, 3, padding="same")(x)  # -6..8

    rows = rows_of(network)
    assert [row.type for row in rows] == ["Conv2D", "Conv2D", "Conv2D", "Add", "Conv2D"]
    assert [row.receptive_field for row in rows] == [3, 11, 3, 11, 15]
    assert [row.output_size for row in rows] == [(16, 16, 8)] * 5


def test_merge_sees_the_union_and_not_only_the_larger_field():
    def network(x):
        before = layers.Conv2D(4, 3)(layers.ZeroPadding2D(((2, 0), (2, 0)))(x))  # -2..0
        after = layers.Conv2D(4, 3)(layers.ZeroPadding2D(((0, 2), (0, 2)))(x))  # 0..2
        return layers.Concatenate()([before, after])

    rows = rows_of(network)
    assert [row.receptive_field for row in rows if row.type == "Conv2D"] == [3, 3]
    assert (rows[-1].output_size, rows[-1].receptive_field) == ((32, 32, 8), 5)


def test_cropped_shortcut_lies_within_the_branch():
    rows = rows_of(lambda x: layers.Add()([layers.Conv2D(3, 3)(x), layers.Cropping2D(1)(x)]))
    assert rows[-1].receptive_field == 3


def test_longer_side_of_an_oblong_window_counts():
    assert rows_of(lambda x: layers.Conv2D(4, (1, 7))(x))[0].receptive_field == 7


def test_gate_of_the_whole_image_makes_all_that_follows_see_it():
    def network(x):
        x = layers.Conv2D(8, 3)(x)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
        return layers.Conv2D(4, 3)(layers.Multiply()([x, gate]))

    rows = rows_of(network)
    assert [row.receptive_field for row in rows] == [3, None, None, None, None]
    assert [row.output_size for row in rows] == [(30, 30, 8), (1, 1, 8), (1, 1, 8), (30, 30, 8), (28, 28, 4)]


@pytest.mark.parametrize(
    ("layer", "field"),
    [
        (layers.BatchNormalization(), 3),
        (layers.LayerNormalization(), 3),
        (layers.Softmax(), 3),
        (layers.LayerNormalization(axis=(1, 2, 3)), None),
        (layers.UnitNormalization(axis=-2), None),
        (layers.GroupNormalization(2), None),
    ],
)
def test_normalization_over_the_image_sees_all_of_it(layer, field):
    assert rows_of(lambda x: layer(layers.Conv2D(4, 3)(x)))[-1].receptive_field == field


def test_gate_from_a_large_pooling_window_sees_the_image_too():
    rows = rows_of(lambda x: layers.Multiply()([x, layers.AveragePooling2D(32)(x)]))
    assert [row.receptive_field for row in rows] == [32, None]


@pytest.mark.parametrize(
    ("layer", "multiply_adds"),
    [
        (layers.Conv2D(10, 3, padding="same"), 8 * 8 * 9 * 6 * 10),
        (layers.Conv2D(10, 3, padding="valid"), 6 * 6 * 9 * 6 * 10),
        (layers.Conv2D(10, (1, 5), strides=2, padding="same"), 4 * 4 * 5 * 6 * 10),
        (layers.Conv2D(10, 3, padding="same", groups=2), 8 * 8 * 9 * 3 * 10),
        (layers.DepthwiseConv2D(3, padding="same"), 8 * 8 * 9 * 6),
        (layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 8 * 8 * 9 * 12),
        (layers.SeparableConv2D(10, 3, padding="same"), 8 * 8 * (9 * 6 + 6 * 10)),
        (layers.SeparableConv2D(10, 3, strides=2, padding="same", depth_multiplier=2), 4 * 4 * (9 * 12 + 12 * 10)),
        (layers.Dense(10), 8 * 8 * 6 * 10),
        (layers.BatchNormalization(), 0),
        (layers.MaxPooling2D(2), 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_multiply_adds_by_hand(layer, multiply_adds):
    assert [row.multiply_adds for row in rows_of(layer, size=(8, 8, 6))] == [multiply_adds]


def test_dense_after_flatten_multiplies_each_input_with_each_unit():
    rows = rows_of(lambda x: layers.Dense(7)(layers.Flatten()(x)), size=(8, 8, 6))
    assert [row.multiply_adds for row in rows] == [0, 8 * 8 * 6 * 7]


def test_layers_that_change_nothing_have_no_row():
    def network(x):
        return layers.ReLU()(layers.Dropout(0.5)(layers.Conv2D(4, 3)(layers.Rescaling(2)(x))))

    assert [row.type for row in rows_of(network)] == ["Conv2D"]


def test_layer_called_twice_counts_its_parameters_once_and_its_work_twice():
    shared = layers.Conv2D(3, 3, padding="same")
    rows = rows_of(lambda x: shared(shared(x)))
    assert [row.receptive_field for row in rows] == [3, 5]
    assert [row.parameters for row in rows] == [84, 0]
    assert rows[0].multiply_adds == rows[1].multiply_adds > 0


def test_operator_counts_as_a_merge():
    assert rows_of(lambda x: layers.Conv2D(3, 5, padding="same")(x) + x)[-1].receptive_field == 5


def test_sequential_model_is_read_even_when_it_grew_layer_by_layer():
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for _ in range(3):
        model.add(layers.Conv2D(4, 3))
    assert [row.receptive_field for row in geometry(model)] == [3, 5, 7]


def test_nested_model_is_walked():
    def network(x):
        x = layers.Conv2D(4, 3, name="first")(x)
        x = keras.Sequential([layers.Conv2D(4, 3, name="a"), layers.MaxPooling2D(2, name="b")], name="block")(x)
        return layers.Conv2D(4, 3, name="last")(x)

    rows = rows_of(network)
    assert [row.layer for row in rows] == ["first", "block/a", "block/b", "last"]
    assert [row.receptive_field for row in rows] == [3, 5, 6, 10]


class Block(keras.Model):
    """A subclassed model, which has no graph."""

    def call(self, x):
        return x


class Custom(layers.Layer):
    """Keeps the size, yet sees all."""

    def call(self, x):
        return x + keras.ops.mean(x, axis=(1, 2), keepdims=True)


@pytest.mark.parametrize(
    ("layer", "multiply_adds"),
    [
        (layers.UpSampling2D(2), 0),
        (layers.Conv2DTranspose(4, 3, padding="same"), 32 * 32 * 9 * 3 * 4),  # keeps the size, yet sees neighbours
        (layers.Lambda(lambda x: x[:, ::2]), None),
        (layers.Reshape((1024, 3)), 0),
        (Custom(), None),
        (Block(), None),
        (lambda x: keras.ops.flip(x, axis=1), 0),
        (lambda x: layers.MultiHeadAttention(1, 2)(x, x), None),
        (lambda x: keras.ops.matmul(x, keras.ops.transpose(x, (0, 1, 3, 2))), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layer_without_a_rule_is_unknown_and_what_follows_too(layer, multiply_adds):
    rows = rows_of(lambda x: layers.Dense(2)(layer(x)))
    assert {row.receptive_field for row in rows[-2:]} == {"unknown"}
    assert rows[-2].multiply_adds == multiply_adds
    assert rows[-1].multiply_adds > 0
    assert (total_multiply_adds(rows) is None) == (multiply_adds is None)


def test_branches_with_unequal_strides_are_unknown():
    rows = rows_of(lambda x: layers.Add()([layers.Conv2D(4, 17)(x), layers.Conv2D(4, 1, strides=2)(x)]))  # both 16x16
    assert [row.receptive_field for row in rows] == [17, 1, "unknown"]


def test_spectral_normalization_changes_nothing_of_its_layer():
    plain, normalized = (
        rows_of(wrap(layers.Conv2D(4, 3)))[0] for wrap in (lambda layer: layer, layers.SpectralNormalization)
    )
    assert normalized.receptive_field == plain.receptive_field == 3
    assert normalized.multiply_adds == plain.multiply_adds


@pytest.mark.parametrize("name", model_kinds.EXACT | model_kinds.RANDOM)
def test_geometry_of_any_kind_of_model_is_told_as_far_as_it_is_known(name):
    model = (model_kinds.EXACT | model_kinds.RANDOM)[name]()
    rows = geometry(model)
    assert sum(row.parameters for row in rows) == model.count_params()
    assert (total_multiply_adds(rows) is None) == (name in WITHOUT_RULE)
    Console(file=io.StringIO()).print(command.table(name, rows))


WITHOUT_RULE = (
    "attention",
    "attention_with_dropout",
    "recurrent",
    "custom",
    "custom_noise",
    "frozen_block",
    "regularizers",
)


def measured_field(model):
    """First and last input row that moves the centre of the output: one image for each row, bright in that row.

    Kernels are made positive, so that no two paths cancel. Forward only, so that maxima need no special case.
    """
    for weight in model.weights:
        if len(weight.shape) == 4:
            weight.assign(np.full(weight.shape, 1 / np.prod(weight.shape[:-1]), np.float32))
    height, width, channels = model.input_shape[1:]
    images = np.eye(height, dtype=np.float32)[:, :, None, None] * np.ones((width, channels), np.float32)
    outputs = np.asarray(model(images, training=False))
    moved = np.flatnonzero(outputs[:, outputs.shape[1] // 2].any((1, 2)))
    return moved[0], moved[-1]


@pytest.mark.parametrize(
    ("name", "last", "width", "field"), [("custom", "classes", 8, 32), ("baseline", "block3_pool", 32, 36)]
)
def test_field_of_our_models_is_what_moves_their_output(name, last, width, field):
    model = models.build(name)
    model = keras.Model(model.get_layer("normalised").output, model.get_layer(last).output)
    wide = keras.models.clone_model(model, input_tensors=keras.Input((96, width, 3)))
    first, last = measured_field(wide)
    assert last - first + 1 == geometry(wide)[-1].receptive_field == field


KINDS = {
    "conv": lambda x, **window: layers.Conv2D(2, use_bias=False, **window)(x),
    "depthwise": lambda x, **window: layers.DepthwiseConv2D(depth_multiplier=2, **window)(x),
    "separable": lambda x, **window: layers.SeparableConv2D(2, **window)(x),
    "pool": lambda x, kernel_size, dilation_rate, **window: layers.AveragePooling2D(kernel_size, **window)(x),
    "padding": lambda x, kernel_size, **_: layers.ZeroPadding2D(((kernel_size, 0), (0, kernel_size)))(x),
    "cropping": lambda x, kernel_size, **_: layers.Cropping2D(((kernel_size, 0), (0, kernel_size)))(x),
    "branches": lambda x, kernel_size, strides, padding, dilation_rate: layers.Concatenate()(
        [
            layers.Conv2D(2, kernel_size, strides, padding="same", dilation_rate=dilation_rate)(x),
            # Sees nothing after its own pixel: the union shows on which side "same" puts the odd pixel of padding.
            layers.Conv2D(2, kernel_size, strides)(layers.ZeroPadding2D(((kernel_size - 1, 0),) * 2)(x)),
        ]
    ),
}
STEPS = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 5),
    st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]),  # TensorFlow has no stride together with dilation
    st.sampled_from(["same", "valid"]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=4))
def test_field_of_any_chain_is_what_moves_its_output(steps):
    x = inputs = keras.Input((80, 80, 1))
    for kind, kernel, (stride, dilation), padding in steps:
        assume(min(x.shape[1:3]) > 2 * kernel * dilation)
        x = KINDS[kind](x, kernel_size=kernel, strides=stride, dilation_rate=dilation, padding=padding)
    model = keras.Model(inputs, x)
    first, last = measured_field(model)
    assume(first > 0 and last < 79)  # else the image may cut the field
    rows = geometry(model)
    assert last - first + 1 == (rows[-1].receptive_field if rows else 1)


def test_rows_survive_json():
    rows = as_rows(geometry(models.build("custom")))
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0] == {
        "layer": "separable1",
        "type": "SeparableConv2D",
        "output_size": [32, 32, 64],
        "receptive_field": 3,
        "parameters": 3 * 9 + 3 * 64,
        "multiply_adds": 32 * 32 * (3 * 9 + 3 * 64),
    }


def test_command_prints_a_row_a_layer_and_the_totals(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["geometry", "custom"])
    monkeypatch.setenv("COLUMNS", "80")
    command.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["separable2", "SeparableConv2D", "32*32*128", "5", "8,768", "8,978,432"] in lines
    assert ["average", "GlobalAveragePooling2D", "1*1*10", "image", "0", "0"] in lines
    assert lines[-1] == ["total", "92,027", "24,017,920"]


def command_line(*arguments):
    return subprocess.run([sys.executable, "-m", "pipeline.geometry", *arguments], capture_output=True, text=True)


def test_unknown_model_is_one_line_before_tensorflow_is_imported():
    done = command_line("resnet")
    assert done.returncode == 1
    assert done.stderr.startswith("error: model 'resnet' does not exist")
    assert done.stderr.count("\n") == 1  # importing TensorFlow writes lines of its own


def test_usage_lists_the_models():
    done = command_line()
    assert done.returncode == 2
    assert "baseline" in done.stderr and "custom" in done.stderr
