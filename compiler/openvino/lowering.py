"""Writing operators in older operator sets, exactly, for devices whose software ended with those.

Each rewrite stands for one operator in the newer set, and gives up where what the older one computes could
differ. The specifications are in OpenVINO's documentation, "Available Operation Sets".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset1, opset3, opset4, opset6, opset8
from openvino.utils.node_factory import NodeFactory

from compiler.openvino.library import Model

Integers = npt.NDArray[np.int64]
#: Interpolate-4's modes.
_MODES: Final = frozenset({"nearest", "linear", "linear_onnx", "cubic"})
_RESIZING: Final = frozenset(
    {
        "mode",
        "shape_calculation_mode",
        "coordinate_transformation_mode",
        "nearest_mode",
        "antialias",
        "pads_begin",
        "pads_end",
        "cube_coeff",
    }
)
_AXES: Final = 2
#: Mask and scale; what comes after them, newer specifications name.
_ATTENTION_EXTRAS: Final = 2
#: The lowest float16: what is added where attention must not look.
_MASKED: Final = -65504.0
_NONE: Final = 99

#: Returns what stands for a node, or None where nothing older computes the same.
Rewrite = Callable[[Model], Model | None]


def lower(model: Model, newest: int) -> list[str]:
    """Rewrite, in place, what is newer than an operator set; return what was rewritten, in words."""
    done: dict[str, int] = {}
    for node in model.get_ordered_ops():
        about = node.get_type_info()
        key = f"{about.name}-{_version(node)}"
        if _version(node) <= newest or key not in REWRITES:
            continue
        found = REWRITES[key](node)
        if found is None:
            continue
        _put(node, found)
        what = f"{key} as {found.get_type_name()}-{_version(found)}"
        done[what] = done.get(what, 0) + 1
    model.validate_nodes_and_infer_types()
    return [f"{count} {what}" for what, count in sorted(done.items())]


def newer(model: Model, newest: int) -> list[str]:
    """Return the operators that are newer than an operator set, each once."""
    found = {
        f"{node.get_type_name()}-{_version(node)} ({node.get_friendly_name()})"
        for node in model.get_ordered_ops()
        if _version(node) > newest
    }
    return sorted(found)


def _version(node: Model) -> int:
    """Return the number of an operator's set; what is in none of them counts as newer than all."""
    text = str(node.get_type_info().version_id)
    return int(text.removeprefix("opset")) if text.startswith("opset") else _NONE


def _put(old: Model, new: Model) -> None:
    new.set_friendly_name(old.get_friendly_name())
    for i in range(new.get_output_size()):
        names = old.output(i).get_names()
        old.output(i).replace(new.output(i))
        if names:
            new.output(i).get_tensor().set_names(names)


def _numbers(value: Model) -> Integers | None:
    """Return a constant's numbers; None for what is computed."""
    node = value.get_node()
    return node.data.astype(np.int64) if node.get_type_name() == "Constant" else None


def _pad(node: Model) -> Model | None:
    """Pad-12 also crops, by negative numbers; Pad-1 does not, so a slice does that before."""
    data, begin, end = node.input_value(0), *map(_numbers, (node.input_value(1), node.input_value(2)))
    mode = node.get_attributes()["pad_mode"]
    if begin is None or end is None:
        return None
    if min(*begin, *end) < 0:
        if mode != "constant":
            return None
        shape = np.array(data.get_shape())
        low, high = np.maximum(-begin, 0), shape - np.maximum(-end, 0)
        nothing = [0] * len(shape)
        data = opset1.strided_slice(data, low, high, np.ones_like(low), nothing, nothing).output(0)
    value = [node.input_value(3)] if mode == "constant" else []
    return opset1.pad(data, np.maximum(begin, 0), np.maximum(end, 0), mode, *value)


def _top_k(node: Model) -> Model:
    """Equal but for the order of equal values, which TopK-3 leaves open."""
    x = node.get_attributes()
    values = node.input_value(0), node.input_value(1)
    return opset3.topk(*values, x["axis"], x["mode"], x["sort"], x["index_element_type"])


def _avg_pool(node: Model) -> Model | None:
    """AvgPool-14 has a third way to round, AvgPool-16 dilations; where the shape is the same, so is all."""
    x = node.get_attributes()
    if set(x.get("dilations", ())) - {1}:
        return None
    for rounding in ("floor", "ceil"):
        found = opset1.avg_pool(
            node.input_value(0),
            x["strides"],
            x["pads_begin"],
            x["pads_end"],
            x["kernel"],
            x["exclude-pad"],
            rounding,
            x["auto_pad"],
        )
        if _same_shape(found, node):
            return found
    return None


def _max_pool(node: Model) -> Model | None:
    """MaxPool-8 has a second output and dilations; MaxPool-1 is enough where neither is used."""
    x = node.get_attributes()
    plain = not node.output(1).get_target_inputs() and not set(x["dilations"]) - {1}
    for rounding in ("floor", "ceil"):
        sizes = node.input_value(0), x["strides"]
        pads = x["pads_begin"], x["pads_end"], x["kernel"], rounding, x["auto_pad"]
        if plain:
            found = opset1.max_pool(*sizes, *pads)
        else:
            found = opset8.max_pool(*sizes, x["dilations"], *pads, x["index_element_type"], x["axis"])
        if _same_shape(found, node):
            return found
    return None


def _interpolate(node: Model) -> Model | None:
    """Interpolate-4 knows fewer modes, and takes sizes and scales both; the one not asked for is not read."""
    x = node.get_attributes()
    if x["mode"] not in _MODES:
        return None
    image, given = node.input_value(0), node.input_value(1)
    rank = len(image.get_shape())
    axes = _numbers(node.input_value(2)) if node.get_input_size() > _AXES else np.arange(rank)
    if axes is None:
        return None
    by_sizes = x["shape_calculation_mode"] == "sizes"
    out, wide = np.array(node.output(0).get_shape())[axes], np.array(image.get_shape())[axes]
    sizes = given if by_sizes else opset1.constant(out).output(0)
    scales = opset1.constant((out / wide).astype(np.float32)).output(0) if by_sizes else given
    kept = {name: value for name, value in x.items() if name in _RESIZING}
    values = [image, sizes, scales, opset1.constant(axes).output(0)]
    # The library's own function of that name in this set makes an operator of the first one.
    return NodeFactory("opset4").create("Interpolate", values, kept)


def _attention(node: Model) -> Model | None:
    """Softmax(Q Kᵀ scale + mask) V, as the specification of ScaledDotProductAttention-13 writes it out."""
    query, key, value, *rest = node.input_values()
    shape = query.get_shape()
    scale = rest[1] if len(rest) > 1 else opset1.constant(np.float32(1 / math.sqrt(shape[-1])))
    if len(rest) > _ATTENTION_EXTRAS:
        return None
    scores = opset1.matmul(opset1.multiply(query, scale), key, transpose_a=False, transpose_b=True)
    if node.get_attributes()["causal"]:
        sizes = shape[-2], key.get_shape()[-2]
        scores = opset1.add(scores, np.triu(np.full(sizes, _MASKED, np.float32), 1))
    elif rest:
        mask = rest[0]
        if mask.get_element_type() == openvino.Type.boolean:
            mask = opset1.select(mask, np.float32(0), np.float32(_MASKED))
        scores = opset1.add(scores, mask)
    weights = opset1.softmax(scores, len(scores.output(0).get_shape()) - 1)
    return opset1.matmul(weights, value, transpose_a=False, transpose_b=False)


def _group_normalization(node: Model) -> Model:
    """Each group of channels to mean 0 and variance 1, then a scale and a bias per channel."""
    x = node.get_attributes()
    data, *affine = node.input_values()
    shape = list(data.get_shape())
    groups = opset1.reshape(data, [shape[0], x["num_groups"], -1], special_zero=False)
    normal = opset6.mvn(groups, [2], normalize_variance=True, eps=x["epsilon"], eps_mode="inside_sqrt")
    whole = opset1.reshape(normal, shape, special_zero=False)
    wide = [1, shape[1], *[1] * (len(shape) - 2)]
    scale, bias = (opset1.reshape(y, wide, special_zero=False) for y in affine)
    return opset1.add(opset1.multiply(whole, scale), bias)


def _squeeze(node: Model) -> Model:
    """Squeeze-15 only adds what dynamic shapes need."""
    return opset1.squeeze(*node.input_values())


def _scatter_elements(node: Model) -> Model | None:
    if node.get_attributes()["reduction"] != "none":
        return None
    return opset3.scatter_elements_update(*node.input_values())


def _scatter_nd(node: Model) -> Model | None:
    if node.get_attributes()["reduction"] != "none":
        return None
    return opset4.scatter_nd_update(*node.input_values())


def _same_shape(found: Model, node: Model) -> bool:
    return bool(found.output(0).get_partial_shape() == node.output(0).get_partial_shape())


#: By operator and set.
REWRITES: Final[dict[str, Rewrite]] = {
    "AvgPool-14": _avg_pool,
    "AvgPool-16": _avg_pool,
    "GroupNormalization-12": _group_normalization,
    "Interpolate-11": _interpolate,
    "MaxPool-14": _max_pool,
    "Pad-12": _pad,
    "ScaledDotProductAttention-13": _attention,
    "ScatterElementsUpdate-12": _scatter_elements,
    "ScatterNDUpdate-15": _scatter_nd,
    "Squeeze-15": _squeeze,
    "TopK-11": _top_k,
}
