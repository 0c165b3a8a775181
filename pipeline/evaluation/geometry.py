"""Output size, receptive field, parameters and multiply-adds of a model, layer by layer.

Branches, residuals and nested models are followed: every tensor of
the graph carries which input pixels its positions see, windows (convolutions, pooling, padding, cropping) widen that,
and merging layers take the union.

Any other layer that keeps height and width is taken to work on each position by itself (activations, dropout,
normalisation with its statistics fixed, Dense on an image), and any other that changes them is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pipeline.system.command import PipelineError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class LayerGeometry:
    """One call of one layer, for one image."""

    layer: str
    type: str
    output_size: tuple[int, ...]  # height, width, channels
    receptive_field: int | None  # side in input pixels, the longer of the two; None: the whole image
    parameters: int  # moving statistics included; a layer called twice counts once
    multiply_adds: int


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


Field: TypeAlias = tuple[Span, Span] | None  # height, width; None: the whole image


def geometry(model: keras.Model) -> list[LayerGeometry]:
    """One row a layer, in the order in which the model calls them.

    Layers that hold no parameters and change neither size nor receptive field (dropout, activations) have no row.
    Multiply-adds are those of convolutions and Dense; everything else, batch normalisation too, counts 0.

    Args:
        model: Functional or Sequential, with its input's height and width known.

    Raises:
        PipelineError: the receptive field of a layer is not known; the message names it.
    """
    pixel = Span(jump=1, left=0, right=0)
    return list(_rows(model, fields={id(tensor): (pixel, pixel) for tensor in model.inputs}, counted=set()))


def total_multiply_adds(geometry: list[LayerGeometry]) -> int | None:
    """Multiply-adds of the whole model; None if those of a layer are unknown."""
    counts = [row.multiply_adds for row in geometry]
    return None if None in counts else sum(counts)


def as_rows(geometry: list[LayerGeometry]) -> list[dict[str, Any]]:
    """The same as JSON has it, for geometry.json."""
    return [{**asdict(row), "output_size": list(row.output_size)} for row in geometry]


def _rows(model: keras.Model, fields: dict[int, Field], counted: set[int], within: str = "") -> Iterator[LayerGeometry]:
    """The rows of a model whose inputs' fields are in `fields`, by the tensor's id; adds those of its other tensors."""
    import keras

    calls = [call for output in model.outputs for call in _calls(output, seen=set())]
    for call in dict.fromkeys(calls):  # several outputs share calls
        layer, inputs, output = call.operation, call.input_tensors, call.outputs[0]
        if isinstance(layer, keras.Model):
            # Subclassed models have no inputs, and no graph to walk.
            if [tensor.shape for tensor in getattr(layer, "inputs", [])] != [tensor.shape for tensor in inputs]:
                raise PipelineError(
                    f"nested model {within + layer.name!r} has no graph for {inputs[0].shape}: call its layers directly"
                )
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
            receptive_field=field and max(span.left + span.right + 1 for span in field),
            parameters=layer.count_params() if first_call else 0,
            multiply_adds=_multiply_adds(layer, inputs[0], output),
        )
        unchanged = all(tensor.shape == output.shape for tensor in inputs) and all(before == field for before in seen)
        if row.parameters or row.multiply_adds or not unchanged:
            yield row


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
    from keras.layers import GlobalAveragePooling2D, GlobalMaxPooling2D

    spatial = [field for field in seen if field is not None]
    # Whatever has no height and width any more (Flatten, global pooling) saw all of it, and so has all that follows.
    if (
        len(spatial) < len(seen)
        or len(output.shape) == 2
        or isinstance(layer, GlobalAveragePooling2D | GlobalMaxPooling2D)
    ):
        return None
    name = f"layer {layer.name!r} ({type(layer).__name__})"
    if windows := _windows(layer, inputs[0], output):
        height, width = (span.through(*window) for span, window in zip(spatial[0], windows, strict=True))
        return height, width
    if hasattr(layer, "kernel_size") or any(
        len(tensor.shape) != 4 or tensor.shape[1:3] not in ((1, 1), output.shape[1:3]) for tensor in inputs
    ):
        raise PipelineError(
            f"{name} has a receptive field that is not known: use Conv2D, DepthwiseConv2D, SeparableConv2D, pooling, "
            "ZeroPadding2D or Cropping2D, or add its rule to pipeline/evaluation/geometry.py"
        )
    if any(tensor.shape[1:3] != output.shape[1:3] for tensor in inputs):
        return None  # 1x1, broadcast over the image: a gate, which is not where its pixels are
    height, width = (_union(name, spans) for spans in zip(*spatial, strict=True))
    return height, width


def _union(name: str, spans: tuple[Span, ...]) -> Span:
    jumps = {span.jump for span in spans}
    if len(jumps) > 1:
        raise PipelineError(f"{name} merges branches whose strides multiply to {sorted(jumps)}: make them equal")
    return Span(spans[0].jump, max(span.left for span in spans), max(span.right for span in spans))


def _windows(layer: Any, tensor: keras.KerasTensor, output: keras.KerasTensor) -> list[tuple[int, int, int]] | None:
    """Reach, stride and padding before the first position, for height and width; None for a layer without a window."""
    from keras import layers

    match layer:
        case layers.ZeroPadding2D():
            return [(0, 1, before) for before, _ in layer.padding]
        case layers.Cropping2D():
            return [(0, 1, -before) for before, _ in layer.cropping]
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


def _multiply_adds(layer: Any, tensor: keras.KerasTensor, output: keras.KerasTensor) -> int:
    from keras import layers

    positions, channels, filters = prod(output.shape[1:-1]), tensor.shape[-1], output.shape[-1]
    match layer:
        case layers.Conv2D():
            return positions * prod(layer.kernel_size) * channels // layer.groups * filters
        case layers.DepthwiseConv2D():
            return positions * prod(layer.kernel_size) * filters
        case layers.SeparableConv2D():
            depthwise = channels * layer.depth_multiplier
            return positions * (prod(layer.kernel_size) * depthwise + depthwise * filters)
        case layers.Dense():
            return positions * channels * filters
        case _:
            return 0
