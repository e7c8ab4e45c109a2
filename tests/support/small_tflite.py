"""The small classifier of `small_models` as a TensorFlow Lite file, written by hand: needs no converter."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

import small_models
from compiler.tflite import model as tflite
from compiler.tflite import quantize
from fleet.bundle import interface
from fleet.bundle.interface import Interface, Port

SIDE, CLASSES, CHANNELS = small_models.SIDE, small_models.CLASSES, 12
INTERFACE = Interface(
    inputs=(Port(name="picture", datatype="FP32", shape=(1, 1, SIDE, SIDE), axes=(0, 2, 3, 1)),),
    outputs=(Port(name="scores", datatype="FP32", shape=(1, CLASSES)),),
)
Anything = Any  # the generated schema has no types


class Draft:
    """A file being written."""

    def __init__(self) -> None:
        """Start with nothing."""
        schema = tflite.schema()
        self.model: Anything = schema.ModelT()
        self.graph: Anything = schema.SubGraphT()
        self.model.version = 3
        self.model.description = "test"
        self.model.subgraphs = [self.graph]
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph.tensors, self.graph.operators = [], []

    def tensor(
        self, name: str, shape: Sequence[int], values: npt.NDArray[Any] | None = None, kind: str = "FLOAT32"
    ) -> int:
        """Add a tensor; return its place."""
        schema = tflite.schema()
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), 0
        tensor.type = getattr(schema.TensorType, kind)
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **fields: object
    ) -> None:
        """Add an operator, with the fields of its options."""
        schema = tflite.schema()
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        number = getattr(schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")()
            for name, value in fields.items():
                setattr(operator.builtinOptions, name, value)
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)

    def ends(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Say what goes in and comes out, and give it a signature."""
        schema = tflite.schema()
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [self._named(x) for x in inputs]
        signature.outputs = [self._named(x) for x in outputs]
        self.model.signatureDefs = [signature]

    def _named(self, place: int) -> Anything:
        found = tflite.schema().TensorMapT()
        found.name, found.tensorIndex = self.graph.tensors[place].name, place
        return found

    def bytes(self) -> bytes:
        """Return the file."""
        return tflite.pack(self.model)


def draft() -> Draft:
    """Return the classifier in float, channels last."""
    weights = {x.name: numpy_helper.to_array(x) for x in small_models.graph().graph.initializer}
    kernel = weights["kernel"].transpose(0, 2, 3, 1)
    dense = weights["weights"].reshape(CHANNELS, SIDE, SIDE, CLASSES).transpose(1, 2, 0, 3)
    rows = SIDE * SIDE * CHANNELS
    file = Draft()
    picture = file.tensor("picture", [1, SIDE, SIDE, 1])
    filters = file.tensor("kernel", kernel.shape, kernel)
    bias = file.tensor("kernel_bias", [CHANNELS], np.zeros(CHANNELS, np.float32))
    positive = file.tensor("positive", [1, SIDE, SIDE, CHANNELS])
    shape = file.tensor("flat_shape", [2], np.array([1, rows], np.int32), "INT32")
    flat = file.tensor("flat", [1, rows])
    matrix = file.tensor("weights", [CLASSES, rows], dense.reshape(rows, CLASSES).T)
    offset = file.tensor("weights_bias", [CLASSES], np.zeros(CLASSES, np.float32))
    scores = file.tensor("scores", [1, CLASSES])
    steps = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    fused = {"padding": 0, "fusedActivationFunction": 1}  # SAME, RELU
    file.operator("CONV_2D", [picture, filters, bias], [positive], "Conv2DOptions", **steps, **fused)
    file.operator("RESHAPE", [positive, shape], [flat], "ReshapeOptions", newShape=[1, rows])
    file.operator("FULLY_CONNECTED", [flat, matrix, offset], [scores], "FullyConnectedOptions")
    file.ends([picture], [scores])
    return file


@functools.cache
def int8() -> bytes:
    """Return the classifier in int8."""
    pictures, _ = small_models.samples(32, 3)
    graph = small_models.graph().graph
    kernel, dense = (numpy_helper.to_array(x) for x in graph.initializer)
    features = small_models._convolved(pictures, kernel)
    scores = features @ dense
    reach = {"picture": pictures, "positive": features, "flat": features, "scores": scores}
    ranges = {name: (float(x.min()), float(x.max())) for name, x in reach.items()}
    return tflite.inlined(quantize.quantize(draft().bytes(), ranges))


def write(folder: Path, *, accelerated: str = "") -> Path:
    """Write the int8 classifier and its interface into a folder; return the model's path."""
    path = folder / "model.tflite"
    path.write_bytes(int8())
    ports = Interface(inputs=INTERFACE.inputs, outputs=INTERFACE.outputs, accelerated=accelerated)
    (folder / interface.PATH).write_bytes(interface.encode(ports))
    return path
