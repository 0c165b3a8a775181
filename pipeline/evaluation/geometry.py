"""Output size, receptive field, parameters and multiply-adds of a model, layer by layer.

Branches, residuals and nested models are followed: every tensor of the graph carries which input pixels its positions
see, windows (convolutions, pooling, padding, cropping) widen that, and merging layers take the union. What a layer sees
or multiplies that has no rule here (a custom layer, attention, a reshape) is unknown, and so is what follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class LayerGeometry:
    """One call of one layer, for one image."""

    layer: str
    type: str
    output_size: tuple[int, ...]  # height, width, channels
    receptive_field: int | Literal["unknown"] | None  # side in input pixels, the longer of the two; None: whole image
    parameters: int  # moving statistics included; a layer called twice counts once
    multiply_adds: int | None  # None: unknown


class Span(NamedTuple):
    """Along one axis, position `i` of a tensor sees the input pixels `i * jump - left` to `i * jump + right`."""

    jump: int
    left: int
    right: int

    def through(self, reach: int, stride: int, before: int) -> Span:
        """What a window sees whose first position lies `before` pixels outside the tensor and spans `reach + 1`.

        Source: Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", 2019, eq. 3-4.
        """
        return Span(self.jump * stride, self.left + before * self.jump, self.right + (reach - before) * self.jump)


Field: TypeAlias = tuple[Span, Span] | Literal["unknown"] | None  # height, width; None: the whole image

# Layers and operations that work on each position by itself, at inference; see _normalizes_over_positions for others.
POSITIONWISE_LAYERS = re.compile(
    "Activation|ReLU|LeakyReLU|PReLU|ELU|Softmax|Identity|Dropout|SpatialDropout2D|AlphaDropout|GaussianDropout|"
    "GaussianNoise|ActivityRegularization|BatchNormalization|LayerNormalization|GroupNormalization|RMSNormalization|"
    "UnitNormalization|Normalization|Rescaling|Dense|Embedding|RandomFlip|RandomTranslation|RandomRotation|RandomZoom|"
    "RandomCrop|RandomContrast|RandomBrightness|RandomErasing|Add|Subtract|Multiply|Average|Maximum|Minimum|Concatenate"
)
POSITIONWISE_OPERATIONS = re.compile(
    "Add|Subtract|Multiply|Divide|TrueDivide|Maximum|Minimum|Power|Square|Sqrt|Rsqrt|Exp|Log|Absolute|Negative|Clip|Cast|"
    "Relu|Relu6|LeakyRelu|Elu|Selu|Gelu|Silu|HardSilu|HardSigmoid|Sigmoid|Tanh|Softplus|Softsign|Mish|Softmax|Concatenate"
)
# Those that select, move or pool values, without multiplying any.
MOVING = re.compile(
    ".*Pooling.*|.*Pool|.*Reshape|Flatten|.*Permute|ZeroPadding.*|Cropping.*|UpSampling.*|Transpose|GetItem|Squeeze|"
    "ExpandDims|Stack|Repeat.*|BroadcastTo|Split|Roll|Flip|Mean|Max|Resizing"
)


def geometry(model: keras.Model) -> list[LayerGeometry]:
    """One row a layer, in the order in which the model calls them.

    Layers that hold no parameters and change neither size nor receptive field (dropout, activations) have no row.
    Multiply-adds are those of convolutions and Dense; other layers with a rule, batch normalization too, count 0.

    Args:
        model: Functional or Sequential, with its input's height and width known.
    """
    pixel = Span(jump=1, left=0, right=0)
    return list(_rows(model, fields={id(tensor): (pixel, pixel) for tensor in model.inputs}, counted=set()))


def total_multiply_adds(geometry: list[LayerGeometry]) -> int | None:
    """Multiply-adds of the whole model; None if those of a layer are unknown."""
    counts = [row.multiply_adds for row in geometry if row.multiply_adds is not None]
    return sum(counts) if len(counts) == len(geometry) else None


def as_rows(geometry: list[LayerGeometry]) -> list[dict[str, Any]]:
    """The same as JSON has it, for geometry.json."""
    return [{**asdict(row), "output_size": list(row.output_size)} for row in geometry]


def _rows(model: keras.Model, fields: dict[int, Field], counted: set[int], within: str = "") -> Iterator[LayerGeometry]:
    """The rows of a model whose inputs' fields are in `fields`, by the tensor's id; adds those of its other tensors."""
    import keras

    calls = [call for output in model.outputs for call in _calls(output, seen=set())]
    for call in dict.fromkeys(calls):  # several outputs share calls
        layer, inputs, output = call.operation, call.input_tensors, call.outputs[0]
        # Subclassed models have no inputs, and no graph to walk.
        graph_inputs = getattr(layer, "inputs", None) if isinstance(layer, keras.Model) else None
        if graph_inputs and [tensor.shape for tensor in graph_inputs] == [tensor.shape for tensor in inputs]:
            fields |= {id(inner): fields[id(outer)] for inner, outer in zip(layer.inputs, inputs, strict=True)}
            yield from _rows(layer, fields, counted, within=f"{within}{layer.name}/")
            fields |= {id(outer): fields[id(inner)] for inner, outer in zip(layer.outputs, call.outputs, strict=True)}
            continue
        seen = [fields[id(tensor)] for tensor in inputs]
        field = _field(layer, inputs, seen, output)
        fields |= {id(tensor): field for tensor in call.outputs}
        first_call = id(layer) not in counted and isinstance(layer, keras.Layer)
        counted.add(id(layer))
        row = LayerGeometry(
            layer=within + layer.name,
            type=type(layer).__name__,
            output_size=(1,) * (4 - len(output.shape)) + output.shape[1:],
            receptive_field=_side(field),
            parameters=layer.count_params() if first_call else 0,
            multiply_adds=_multiply_adds(layer, inputs, output),
        )
        unchanged = all(tensor.shape == output.shape for tensor in inputs) and all(before == field for before in seen)
        if row.parameters or row.multiply_adds != 0 or not unchanged:
            yield row


def _side(field: Field) -> int | Literal["unknown"] | None:
    if field is None or field == "unknown":
        return field
    return max(span.left + span.right + 1 for span in field)


def _calls(tensor: keras.KerasTensor, seen: set) -> Iterator[Any]:
    """The calls of layers (Keras' nodes) that lead from the model's inputs to a tensor, each after those it needs."""
    layer, index, _ = tensor._keras_history
    call = layer._inbound_nodes[index]
    if call.is_input or call in seen:
        return
    seen.add(call)
    for parent in call.input_tensors:
        yield from _calls(parent, seen)
    yield call


def _field(layer: Any, inputs: list[keras.KerasTensor], seen: list[Field], output: keras.KerasTensor) -> Field:
    """What the output of a call sees, given what its inputs see."""
    from keras import layers

    if any(field is None for field in seen):
        return None
    if any(field == "unknown" for field in seen):
        return "unknown"
    # What has no height and width any more saw all of it.
    is_flat = isinstance(layer, layers.Flatten | layers.Reshape) and len(output.shape) == 2
    if is_flat or isinstance(layer, layers.GlobalAveragePooling2D | layers.GlobalMaxPooling2D):
        return None
    if _normalizes_over_positions(layer, inputs[0]):
        return None
    spatial = [field for field in seen if isinstance(field, tuple)]
    if windows := _windows(layer, inputs[0], output):
        height, width = (span.through(*window) for span, window in zip(spatial[0], windows, strict=True))
        return height, width
    if not _is_positionwise(layer) or any(
        len(tensor.shape) != 4 or tensor.shape[1:3] not in ((1, 1), output.shape[1:3]) for tensor in inputs
    ):
        return "unknown"
    if any(tensor.shape[1:3] != output.shape[1:3] for tensor in inputs):
        return None  # 1x1, broadcast over the image: a gate, which is not where its pixels are
    if any(len({span.jump for span in spans}) > 1 for spans in zip(*spatial, strict=True)):
        return "unknown"  # merged branches whose strides differ
    height, width = (_union(spans) for spans in zip(*spatial, strict=True))
    return height, width


def _normalizes_over_positions(layer: Any, tensor: keras.KerasTensor) -> bool:
    """Whether a layer divides by statistics, not fixed ones, that it takes over height or width."""
    from keras import layers

    if len(tensor.shape) != 4:
        return False
    if isinstance(layer, layers.GroupNormalization):
        return True
    kinds = layers.LayerNormalization | layers.RMSNormalization | layers.UnitNormalization | layers.Softmax
    axes = layer.axis if isinstance(layer, kinds) else -1
    return any(axis % 4 in (1, 2) for axis in (axes if isinstance(axes, list | tuple) else [axes]))


def _is_positionwise(layer: Any) -> bool:
    import keras

    if isinstance(layer, keras.layers.SpectralNormalization):
        return _is_positionwise(layer.layer)
    known = POSITIONWISE_LAYERS if isinstance(layer, keras.Layer) else POSITIONWISE_OPERATIONS
    return _is_stock(layer) and bool(known.fullmatch(type(layer).__name__))


def _is_stock(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")


def _union(spans: tuple[Span, ...]) -> Span:
    return Span(spans[0].jump, max(span.left for span in spans), max(span.right for span in spans))


def _windows(layer: Any, tensor: keras.KerasTensor, output: keras.KerasTensor) -> list[tuple[int, int, int]] | None:
    """Reach, stride and padding before the first position, for height and width; None for a layer without a window."""
    from keras import layers

    if isinstance(layer, layers.SpectralNormalization):
        layer = layer.layer
    match layer:
        case layers.ZeroPadding2D():
            return [(0, 1, before) for before, _ in layer.padding]
        case layers.Cropping2D():
            return [(0, 1, -before) for before, _ in layer.cropping]
        case layers.Conv2DTranspose():
            return None
        case layers.Conv2D() | layers.DepthwiseConv2D() | layers.SeparableConv2D():
            reaches = [(kernel - 1) * rate for kernel, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
        case layers.MaxPooling2D() | layers.AveragePooling2D():
            reaches = [size - 1 for size in layer.pool_size]
        case _:
            return None
    windows = []
    for reach, stride, size, positions in zip(
        reaches, layer.strides, tensor.shape[1:3], output.shape[1:3], strict=True
    ):
        # TensorFlow's rule for "same", the odd pixel at the end; with "valid" the windows fit and it gives 0.
        padding = max((positions - 1) * stride + reach + 1 - size, 0)
        windows.append((reach, stride, padding // 2))
    return windows


def _multiply_adds(layer: Any, inputs: list[keras.KerasTensor], output: keras.KerasTensor) -> int | None:
    """Of one call for one image; None if the layer has no rule."""
    from keras import layers

    if isinstance(layer, layers.SpectralNormalization):
        layer = layer.layer  # it scales the kernel, once for all images
    positions, channels, filters = prod(output.shape[1:-1]), inputs[0].shape[-1], output.shape[-1]
    match layer:
        case layers.Conv2DTranspose():
            return prod(inputs[0].shape[1:-1]) * prod(layer.kernel_size) * channels * filters
        case layers.Conv2D():
            return positions * prod(layer.kernel_size) * channels // layer.groups * filters
        case layers.DepthwiseConv2D():
            return positions * prod(layer.kernel_size) * filters
        case layers.SeparableConv2D():
            depthwise = channels * layer.depth_multiplier
            return positions * (prod(layer.kernel_size) * depthwise + depthwise * filters)
        case layers.Dense():
            return positions * channels * filters
    is_moving = _is_stock(layer) and MOVING.fullmatch(type(layer).__name__)
    return 0 if is_moving or _is_positionwise(layer) else None
