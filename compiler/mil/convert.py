"""An ONNX model in, a Core ML package out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from compiler.errors import CompileError, ModelRefusedError, one_line
from compiler.mil import library, package, registry
from compiler.mil.package import Content
from compiler.mil.registry import Node
from compiler.mil.values import HIGHEST_RANK, Value, Var, emit, kind_of, portable, shape_of
from compiler.mil.weights import Plain, Weights
from fleet.bundle.features import Port

#: What an ML Program takes and gives (Core ML documentation, MLMultiArrayDataType).
_PORT_TYPES: Final = {"float32": "fp32", "float16": "fp16", "int32": "int32"}


def convert(model: onnx.ModelProto, *, half: bool = True, weights: Weights | None = None) -> Content:
    """Convert a model of fixed shapes to an ML Program for iOS 17 and macOS 14.

    Args:
        model: every input has a fixed shape.
        half: compute in float16, as the Neural Engine does; inputs and outputs stay float32.
        weights: how weights are stored; as floats by default.

    Raises:
        ModelRefusedError: names every operator that has no converter, or what a converter cannot express.
        CompileError: coremltools cannot do with what it was given.
    """
    registry.check(model)
    library.load()
    import coremltools

    with library.quiet():
        program, inputs, outputs = _program(model, weights or Plain())
        precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
        try:
            made = coremltools.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS17,
                compute_precision=precision,
                skip_model_load=True,
            )
        except Exception as error:  # its passes raise anything
            raise CompileError(f"coremltools: {one_line(error)}") from error
        return package.content(made.get_spec(), Path(made.weights_dir), inputs, outputs)


def _program(model: onnx.ModelProto, weights: Weights) -> tuple[object, list[Port], list[Port]]:
    from coremltools import target
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import Function, Program

    inputs = _ports(model.graph.input)
    placeholders = {x.feature: Builder.placeholder(x.shape or (1,), _mil_type(x.datatype)) for x in inputs}
    program = Program()
    with Function(placeholders, opset_version=target.iOS17) as function:
        values = {x.name: _entering(x, function.inputs[x.feature]) for x in inputs}
        values |= {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
        _walk(model, values, weights)
        outputs = [_port(x, values[x.name]) for x in model.graph.output]
        function.set_outputs([_leaving(x, values[x.name]) for x in outputs])
    program.add_function("main", function)
    return program, inputs, outputs


def _walk(model: onnx.ModelProto, values: dict[str, Value], weights: Weights) -> None:
    opset = next(x.version for x in model.opset_import if x.domain in registry.DOMAINS)
    for proto in model.graph.node:
        node = Node(proto, [values.get(x) if x else None for x in proto.input], opset, weights)
        try:
            found = registry.table()[node.kind](node)
        except ModelRefusedError:
            raise
        except Exception as error:  # the builder refuses what it cannot express with anything
            raise node.refusal("what its operations take", one_line(error)) from error
        several: Sequence[Value] = found if isinstance(found, Sequence) else [found]
        for name, value in zip(node.outputs, several, strict=False):
            if name:
                values[name] = _checked(node, value)


def _checked(node: Node, value: Value) -> Value:
    if len(value.shape) > HIGHEST_RANK:
        raise node.refusal(f"at most {HIGHEST_RANK} dimensions", str(len(value.shape)))
    return value


def _ports(values: Sequence[onnx.ValueInfoProto]) -> list[Port]:
    found = []
    for value in values:
        tensor = value.type.tensor_type
        if any(not x.HasField("dim_value") for x in tensor.shape.dim):
            raise ModelRefusedError(
                f"input {value.name!r}: for Core ML expected a fixed shape; got a dynamic one"
            )
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = tuple(x.dim_value for x in tensor.shape.dim)
        found.append(
            Port(name=value.name, feature=feature(value.name, "in"), datatype=kind.name, shape=shape)
        )
    return found


def _port(value: onnx.ValueInfoProto, found: Value) -> Port:
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return Port(
        name=value.name, feature=feature(value.name, "out"), datatype=kind.name, shape=shape_of(found)
    )


def feature(name: str, side: str) -> str:
    """Return a tensor's name as Core ML takes it: a letter or underscore, then letters, digits, underscores.

    A name that is one already stays; another carries its side, so that two cannot meet.
    """
    return (
        name
        if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)
        else re.sub(r"\W", "_", f"{side}_{name}", flags=re.ASCII)
    )


def _mil_type(datatype: str) -> object:
    from coremltools.converters.mil.mil import types

    return getattr(types, _PORT_TYPES.get(datatype, "fp32" if datatype == "float64" else "int32"))


def _entering(port: Port, var: Var) -> Value:
    """Return an input as the graph knows it: Core ML takes no booleans, and no tensor without dimensions."""
    value = var if port.shape else emit("squeeze", x=var)
    if port.datatype in {"bool", "int8", "uint8", "int16", "uint16"}:
        return emit("cast", x=value, dtype=port.datatype)
    return value


def _leaving(port: Port, value: Value) -> Var:
    """Return an output under its feature's name."""
    if isinstance(value, np.ndarray):
        value = emit("const", val=portable(value))
    if not port.shape:
        value = emit("expand_dims", x=value, axes=[0])
    if kind_of(value).name not in _PORT_TYPES:
        value = emit("cast", x=value, dtype="int32")
    return emit("identity", x=value, name=port.feature)
