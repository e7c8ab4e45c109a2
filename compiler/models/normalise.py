"""Bringing a model into the one form that backends take."""

from __future__ import annotations

from typing import Final

import onnx
from onnx import version_converter

from compiler.errors import ModelRefusedError
from compiler.tensors import spec
from fleet.bundle.description import TensorSpec

#: Per-channel quantization needs it.
OLDEST_OPSET: Final = 13
#: Since this operator set, Resize takes the middle of a pixel for its place.
RESIZE_CHANGED: Final = 11
#: Which input of Dropout says that the model is being trained.
_MODE: Final = 2
#: The newest operator set and IR version that ONNX Runtime 1.17 reads, the oldest that devices may have.
OLD_RUNTIME_OPSET: Final = 20
OLD_RUNTIME_IR: Final = 9


def normalise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model in the form that backends take, and what was done to it.

    Some exports were made in the middle of training: dropout draws lots, normalization follows the batch.
    Old exports list weights as inputs, which keeps a runtime from folding them; old operator sets cannot be
    quantized per channel; documentation strings and recorded shapes only weigh.
    """
    done: list[str] = []
    done += _drop_weight_inputs(model)
    model, raised = _raise_opset(model)
    done += raised + _stop_training(model)
    for node in model.graph.node:
        node.doc_string = ""
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:], model.graph.value_info[:]
    return model, done


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the ONNX operator set that a model uses."""
    return max((x.version for x in model.opset_import if x.domain in {"", "ai.onnx"}), default=1)


def lower_ir(model: onnx.ModelProto) -> None:
    """Write an IR version that older runtimes read, where the operators are old enough for them too.

    The newer ones only added types and annotations, which no model here has.
    """
    if opset(model) <= OLD_RUNTIME_OPSET:
        model.ir_version = min(model.ir_version, OLD_RUNTIME_IR)


def _drop_weight_inputs(model: onnx.ModelProto) -> list[str]:
    weights = {x.name for x in model.graph.initializer}
    keep = [x for x in model.graph.input if x.name not in weights]
    dropped = len(model.graph.input) - len(keep)
    if dropped:
        del model.graph.input[:]
        model.graph.input.extend(keep)
        # Before IR 4 every weight had to be an input as well.
        model.ir_version = max(model.ir_version, 4)
    return [f"{dropped} weights were listed as inputs; no longer"] if dropped else []


def _raise_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    before = opset(model)
    if before >= OLDEST_OPSET:
        return model, []
    try:
        raised = version_converter.convert_version(model, OLDEST_OPSET)
    except RuntimeError as error:
        raise ModelRefusedError(
            f"opset: expected one that can be raised to {OLDEST_OPSET}; got {before}: {str(error)[:200]}"
        ) from error
    if before < RESIZE_CHANGED:
        _resize_as_before(raised)
    return raised, [f"operator set raised from {before} to {OLDEST_OPSET}"]


def _resize_as_before(model: onnx.ModelProto) -> None:
    """Say how Resize maps coordinates: operator set 11 changed the default, which the converter misses."""
    for node in (x for x in model.graph.node if x.op_type == "Resize"):
        there = {x.name for x in node.attribute}
        for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
            if name not in there:
                node.attribute.append(onnx.helper.make_attribute(name, value))


def _stop_training(model: onnx.ModelProto) -> list[str]:
    """Switch Dropout and BatchNormalization to what they do when a model is used."""
    found = 0
    flags = {x.name: bool(onnx.numpy_helper.to_array(x).any()) for x in model.graph.initializer if not x.dims}
    for node in model.graph.node:
        mode = node.input[_MODE] if node.op_type == "Dropout" and len(node.input) > _MODE else ""
        if mode and flags.get(mode, True):
            node.input[_MODE] = ""
            found += 1
        for attribute in node.attribute:
            if node.op_type == "BatchNormalization" and attribute.name == "training_mode" and attribute.i:
                attribute.i = 0
                del node.output[1:]
                found += 1
    return [f"training switched off in {found} operators"] if found else []


def tensors(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the model's inputs and outputs.

    Raises:
        ModelRefusedError: there are none, or one is no tensor of a type that devices can be asked for.
    """
    if not model.graph.input:
        raise ModelRefusedError("model: expected at least one input; got none")
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelRefusedError(f"{value.name!r}: expected a tensor; got {kind}")
    tensor = value.type.tensor_type
    shape = tuple(
        x.dim_value if x.HasField("dim_value") and x.dim_value > 0 else -1 for x in tensor.shape.dim
    )
    try:
        return spec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)
    except KeyError as error:
        raise ModelRefusedError(f"{value.name!r}: unknown type {tensor.elem_type}") from error
