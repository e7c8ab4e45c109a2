"""Writing into a TensorFlow Lite file what its converter leaves out.

onnx2tf writes version 1 for every operator. `edgetpu_compiler` looks at versions, and those of int8 kernels
are higher (TensorFlow, `lite/tools/versioning/op_version.cc`). They must stand there before the file is
quantized: the quantizer keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from compiler.tflite import model as tflite

#: Operator to the first version whose kernel takes int8.
VERSIONS: Final = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "L2_NORMALIZATION": 2,
    "LOGISTIC": 2,
    "MAXIMUM": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PACK": 2,
    "PAD": 2,
    "RELU": 2,
    "RELU6": 2,
    "REDUCE_MAX": 2,
    "REDUCE_MIN": 2,
    "RESIZE_BILINEAR": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "SPACE_TO_DEPTH": 2,
    "SPLIT": 2,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "SUM": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
    "TRANSPOSE_CONV": 2,
}


def rewrite(data: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return the file with its operators' versions, its tensors' names, and nothing that the tools noted.

    Args:
        data: the file.
        inputs: names of the source model's inputs. They become those of the tensors: signatures, which hold
            them as well, are lost where `edgetpu_compiler` rewrites the file.
        outputs: names of its outputs.

    Raises:
        ModelRefusedError: no TensorFlow Lite file.
    """
    model = tflite.unpack(data)
    _versions(model)
    _names(model, inputs, outputs)
    model.metadata = None
    model.metadataBuffer = None
    model.description = b"kedge"
    return tflite.pack(model)


def order(data: bytes) -> tuple[list[str], list[str]]:
    """Return the names that the signature gives inputs and outputs, in the order of the file's tensors."""
    model = tflite.unpack(data)
    graph = model.subgraphs[0]
    signature = model.signatureDefs[0]
    ins = {x.tensorIndex: x.name.decode() for x in signature.inputs}
    outs = {x.tensorIndex: x.name.decode() for x in signature.outputs}
    return [ins[int(i)] for i in graph.inputs], [outs[int(i)] for i in graph.outputs]


def _versions(model: Any) -> None:  # noqa: ANN401 - generated code without types
    kinds = tflite.names_of("BuiltinOperator")
    for code in model.operatorCodes:
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        code.version = max(code.version, VERSIONS.get(kind, 1))


def _names(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:  # noqa: ANN401 - generated
    graph = model.subgraphs[0]
    ours = {
        **dict(zip(map(int, graph.inputs), inputs, strict=True)),
        **dict(zip(map(int, graph.outputs), outputs, strict=True)),
    }
    taken = {*inputs, *outputs}
    for place, tensor in enumerate(graph.tensors):
        name = (tensor.name or b"").decode()
        if place in ours:
            name = ours[place]
        elif not name or name in taken:
            name = f"{name}:{place}"  # the calibration knows tensors by their names
        taken.add(name)
        tensor.name = name.encode()
