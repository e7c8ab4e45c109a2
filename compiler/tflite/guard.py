"""The guard for TensorFlow Lite files that somebody else may have made, before anything runs them.

LiteRT verifies the structure of the buffer when it opens one, and refuses what is broken; what it accepts may
still ask for more memory than there is, or read weights from elsewhere in the file. Everything here reads
plain values (`compiler.tflite.model`), in the worker process whose memory and time are limited.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from compiler import files
from compiler.errors import ModelRefusedError, one_line
from compiler.placement.facts import ELEMENT_BYTES
from compiler.tflite import model as tflite
from compiler.tflite.model import Graph, Operator, Tensor

#: A flatbuffer's offsets reach no farther.
FILE_LIMIT: Final = 2 * 1024**3 - 1
#: Bytes that one tensor, or all together, may take: far more than any device here has.
TENSOR_LIMIT: Final = 1024**3
#: Of operators, of tensors and of buffers: large real models have some thousand.
OPERATOR_LIMIT: Final = 10_000
DIMENSION_LIMIT: Final = 8
NAME_LIMIT: Final = 4096
#: Operators that keep state, call other graphs or make tensors whose size no file says.
REFUSED: Final = frozenset(
    {
        "ASSIGN_VARIABLE", "BROADCAST_TO", "CALL", "CALL_ONCE", "DELEGATE", "DYNAMIC_UPDATE_SLICE", "FILL",
        "HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_LOOKUP", "HASHTABLE_SIZE", "IF",
        "MULTINOMIAL", "RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "RANGE", "READ_VARIABLE", "TILE",
        "VAR_HANDLE", "WHERE", "WHILE",
    }
)  # fmt: skip
_FOREIGN: Final = ((b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),)
_SIZES: Final = {kind: size for kind, size in ELEMENT_BYTES.items() if kind not in {"INT4", "UINT4", "FP8"}}


def read(path: Path, *, custom: Collection[str] = ()) -> Graph:
    """Read a file, and refuse what is malformed or hostile.

    Args:
        path: the file.
        custom: names of custom operators that it may have.

    Raises:
        ModelRefusedError: says what was expected and what was got.
    """
    data = files.read(path, FILE_LIMIT, ModelRefusedError)
    for start, what in _FOREIGN:
        if data.startswith(start):
            raise ModelRefusedError(f"{path.name}: expected a TensorFlow Lite model; got {what}")
    try:
        _verify(data)
        graph = tflite.parse(data)
        check(graph, custom)
    except ModelRefusedError as error:
        raise ModelRefusedError(f"{path.name}: {error}") from error
    return graph


def _verify(data: bytes) -> None:
    """Let LiteRT verify every offset, and look at how much there is before Python unpacks it."""
    if data[4:8] != tflite.IDENTIFIER:
        raise ModelRefusedError(f"expected a TensorFlow Lite model; got {data[:8]!r}")
    reader = tflite.schema()
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(model_content=data, num_threads=1)
    except ValueError as error:
        text = one_line(error)
        if "Didn't find op" not in text and "Encountered unresolved custom op" not in text:
            raise ModelRefusedError(f"expected a TensorFlow Lite model; {text}") from error
    _check_amounts(reader.Model.GetRootAs(data, 0), len(data))


def _check_amounts(root: Any, size: int) -> None:  # noqa: ANN401 - generated code without types
    """Look at how much there is to read before it is read.

    Parts of a flatbuffer may share their bytes, so that a small file becomes a large model: what all parts
    hold together may not be more than the file.
    """
    count = root.SubgraphsLength()
    if count != 1:
        raise ModelRefusedError(f"expected one graph; got {count}")
    graph = root.Subgraphs(0)
    lists = (graph.OperatorsLength(), graph.TensorsLength(), root.BuffersLength(), root.OperatorCodesLength())
    largest = max(*lists, root.MetadataLength(), root.SignatureDefsLength())
    if largest > OPERATOR_LIMIT:
        raise ModelRefusedError(f"expected at most {OPERATOR_LIMIT} operators and tensors; got {largest}")
    held = sum(_parts(root, graph))
    if held > size:
        raise ModelRefusedError(f"expected at most {size} bytes inside, the file's size; got {held}")


def _parts(root: Any, graph: Any) -> Iterator[int]:  # noqa: ANN401 - generated code without types
    """Yield the bytes that each list in the file holds."""
    for place in range(root.BuffersLength()):
        buffer = root.Buffers(place)
        if buffer.Offset() > 1 or buffer.Size() > 1:
            raise ModelRefusedError("expected weights inside the model; got ones behind it")
        yield buffer.DataLength()
    for place in range(graph.TensorsLength()):
        tensor = graph.Tensors(place)
        yield len(tensor.Name() or b"") + 4 * (tensor.ShapeLength() + tensor.ShapeSignatureLength())
        scaling = tensor.Quantization()
        if scaling is not None:
            yield 4 * (scaling.ScaleLength() + scaling.MinLength() + scaling.MaxLength())
            yield 8 * scaling.ZeroPointLength()
    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        yield 4 * (operator.InputsLength() + operator.OutputsLength() + operator.IntermediatesLength())
        yield operator.CustomOptionsLength()


def check(graph: Graph, custom: Collection[str] = ()) -> None:
    """Refuse a graph that contradicts itself, or asks for too much. Pure.

    Raises:
        ModelRefusedError: says what was expected and what was got.
    """
    if not graph.operators or not graph.inputs or not graph.outputs:
        raise ModelRefusedError("expected a graph with operators, inputs and outputs; got none")
    total = 0
    for tensor in graph.tensors:
        total += _size(tensor)
    if total > TENSOR_LIMIT:
        raise ModelRefusedError(f"expected tensors of at most {TENSOR_LIMIT} bytes; got {total}")
    known = {i for i, x in enumerate(graph.tensors) if x.data is not None} | set(graph.inputs)
    for operator in graph.operators:
        _check_kind(operator, custom)
        known = _reached(operator, known, len(graph.tensors))
    missing = [i for i in (*graph.inputs, *graph.outputs) if i not in known]
    if missing:
        raise ModelRefusedError(f"expected outputs that an operator makes; got tensor {missing[0]}")


def _check_kind(operator: Operator, custom: Collection[str]) -> None:
    if operator.kind == "CUSTOM":
        if operator.custom not in custom:
            raise ModelRefusedError(f"operator: expected a built-in one; got {operator.custom[:80]!r}")
    elif operator.kind in REFUSED:
        raise ModelRefusedError(f"operator: expected one without state or subgraphs; got {operator.kind}")


def _reached(operator: Operator, known: set[int], tensors: int) -> set[int]:
    for place in operator.inputs:
        if place != -1 and place not in known:
            raise ModelRefusedError(f"{operator.kind}: expected inputs made before it; got tensor {place}")
    for place in operator.outputs:
        if not 0 <= place < tensors or place in known:
            raise ModelRefusedError(f"{operator.kind}: expected a new tensor as output; got tensor {place}")
        known.add(place)
    return known


def _size(tensor: Tensor) -> int:
    """Return a tensor's bytes.

    Raises:
        ModelRefusedError: its type, shape, scale or bytes make no sense.
    """
    name = tensor.name[:80]
    if len(tensor.name) > NAME_LIMIT:
        raise ModelRefusedError(f"expected names of at most {NAME_LIMIT} characters; got {len(tensor.name)}")
    if tensor.datatype not in _SIZES:
        raise ModelRefusedError(f"tensor {name!r}: expected numbers; got {tensor.datatype or 'text'}")
    if len(tensor.shape) > DIMENSION_LIMIT or min(tensor.shape, default=0) < 0:
        raise ModelRefusedError(f"tensor {name!r}: expected a fixed shape; got {list(tensor.shape)[:16]}")
    size = math.prod(tensor.shape) * int(_SIZES[tensor.datatype])
    if tensor.data is not None and len(tensor.data) != size:
        raise ModelRefusedError(f"tensor {name!r}: expected {size} bytes; got {len(tensor.data)}")
    if not all(math.isfinite(x) and x > 0 for x in tensor.scales):
        raise ModelRefusedError(f"tensor {name!r}: expected scales above 0; got {tensor.scales[:4]}")
    if tensor.data is not None and tensor.datatype == "FP32":
        values = np.frombuffer(tensor.data, "<f4")
        if not np.isfinite(values).all():
            raise ModelRefusedError(f"tensor {name!r}: expected finite numbers; got NaN or infinity")
    return size
