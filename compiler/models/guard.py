"""The import guard: what a model file must be before anything else touches it.

Neither `onnx.checker` nor ONNX Runtime refuses all of this (a tensor bomb, external data past the end of its
file, an unknown operator, NaN weights, graphs nested so deep that loading takes a minute). It runs in the
worker process, whose memory and time are limited, so that what gets past a rule dies at a limit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx
from onnx import external_data_helper, inliner, numpy_helper

from compiler import files
from compiler.errors import ModelRefusedError, one_line
from compiler.models import breadth
from fleet.ids import Digest

#: A protobuf message ends here, and so does a model in one file.
FILE_LIMIT: Final = 2 * 1024**3 - 1
#: Bytes that all weights together may take.
TENSOR_LIMIT: Final = FILE_LIMIT
NODE_LIMIT: Final = 100_000
#: Loading time of nested subgraphs doubles with each level.
DEPTH_LIMIT: Final = 6
#: Longer names make every later step slow; exporters write at most a few hundred characters.
NAME_LIMIT: Final = 4096
#: numpy has no more dimensions.
DIMENSION_LIMIT: Final = 32
OLDEST_OPSET: Final = 7
DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

_FOREIGN: Final = (
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
    (b"PK\x03\x04", "a zip archive, as PyTorch writes (export it to ONNX)"),
    (b"\x80\x02", "a Python pickle, which Kedge never opens"),
    (b"\x80\x03", "a Python pickle, which Kedge never opens"),
    (b"\x80\x04", "a Python pickle, which Kedge never opens"),
    (b"\x80\x05", "a Python pickle, which Kedge never opens"),
    (b"\x89HDF", "an HDF5 file, as Keras writes (export it to ONNX)"),
    (b"\x1f\x8b", "a gzip archive (unpack it)"),
)


class Source(NamedTuple):
    """A model that was read.

    Attributes:
        model: with its external data inside, and without functions.
        digest: of what was read: of the file, or of the whole where weights lie beside it.
        size: bytes that it takes on disk.
    """

    model: onnx.ModelProto
    digest: Digest
    size: int


def read(path: Path) -> Source:
    """Read a model file, refuse what is malformed or hostile, and inline external data and functions.

    Raises:
        ModelRefusedError: says what was expected and what was got.
    """
    data = _bytes(path)
    model = _parsed(data, path.name)
    graphs = list(_graphs(model))
    tensors = [tensor for graph in graphs for tensor in _tensors(graph)]
    _check_opsets(model)
    for graph in graphs:
        _check_names(graph)
        _check_operators(graph, model)
    _check_sizes(tensors)
    beside = 0
    for tensor in tensors:
        beside += _inline(tensor, path.parent)
        _check_weights(tensor)
    _check_structure(model, len(data) + beside)
    digest = Digest.of(model.SerializeToString(deterministic=True) if beside else data)
    return Source(model, digest, len(data) + beside)


def _bytes(path: Path) -> bytes:
    data = files.read(path, FILE_LIMIT, ModelRefusedError)
    if not data:
        raise ModelRefusedError(f"{path.name}: expected an ONNX model; got 0 bytes")
    for start, what in _FOREIGN:
        if data.startswith(start):
            raise ModelRefusedError(f"{path.name}: expected an ONNX model; got {what}")
    if data[4:8] == b"TFL3":
        raise ModelRefusedError(f"{path.name}: expected an ONNX model; got a TensorFlow Lite model")
    return data


def _parsed(data: bytes, file: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own, which has no types; nothing else is called here
        raise ModelRefusedError(f"{file}: expected an ONNX model; got {one_line(error)}") from error
    if not model.graph.node or not model.graph.output:
        raise ModelRefusedError(f"{file}: expected a graph with operators and outputs; got none")
    return _without_functions(model) if model.functions else model


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    local = {x.domain for x in model.functions} - DOMAINS
    try:
        inlined = inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelRefusedError(f"local functions: {one_line(error)}") from error
    opsets = [x for x in inlined.opset_import if x.domain not in local]
    del inlined.opset_import[:]
    inlined.opset_import.extend(opsets)
    return inlined


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and all subgraphs.

    Raises:
        ModelRefusedError: too deep, or too many nodes.
    """
    waiting, nodes = [(model.graph, 0)], 0
    while waiting:
        graph, depth = waiting.pop()
        nodes += len(graph.node)
        if depth > DEPTH_LIMIT:
            raise ModelRefusedError(f"graph: expected at most {DEPTH_LIMIT} levels of subgraphs; got more")
        if nodes > NODE_LIMIT:
            raise ModelRefusedError(f"graph: expected at most {NODE_LIMIT} operators; got more")
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
                waiting.extend((x, depth + 1) for x in inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    if graph.sparse_initializer:
        raise ModelRefusedError("graph: expected dense weights; got sparse ones")
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _check_names(graph: onnx.GraphProto) -> None:
    values = (*graph.input, *graph.output, *graph.value_info)
    names = [graph.name, *(x.name for x in (*values, *graph.initializer))]
    for node in graph.node:
        names += [node.name, *node.input, *node.output, *(x.name for x in node.attribute)]
    longest = max(map(len, names))
    if longest > NAME_LIMIT:
        raise ModelRefusedError(f"graph: expected names of at most {NAME_LIMIT} characters; got {longest}")
    for value in values:
        dimensions = len(value.type.tensor_type.shape.dim)
        if dimensions > DIMENSION_LIMIT:
            raise ModelRefusedError(
                f"tensor {value.name[:80]!r}: expected at most {DIMENSION_LIMIT} dimensions; got {dimensions}"
            )


def _check_opsets(model: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    domains = Counter(x.domain for x in model.opset_import)
    if domains and max(domains.values()) > 1:
        raise ModelRefusedError(f"opset: expected each domain once; got {max(domains.values())} of one")
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            raise ModelRefusedError(
                f"opset: expected the domains {', '.join(sorted(DOMAINS - {''}))}; got {opset.domain[:80]!r}"
            )
        if opset.domain in {"", "ai.onnx"} and not OLDEST_OPSET <= opset.version <= newest:
            raise ModelRefusedError(f"opset: expected {OLDEST_OPSET} to {newest}; got {opset.version}")


def _check_operators(graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    opsets = {"" if x.domain == "ai.onnx" else x.domain: x.version for x in model.opset_import}
    for node in graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in opsets:
            raise ModelRefusedError(
                f"operator {node.op_type[:80]!r}: its domain {domain[:80]!r} is not imported"
            )
        known = domain == "com.microsoft" or _known(node.op_type, opsets[domain], domain)
        if not known:
            raise ModelRefusedError(
                f"operator: expected one of the ONNX operator set {opsets[domain]}; got {node.op_type[:80]!r}"
            )


def _known(operator: str, opset: int, domain: str) -> bool:
    try:
        return not onnx.defs.get_schema(operator, opset, domain).deprecated
    except onnx.defs.SchemaError:
        return False


def _check_sizes(tensors: list[onnx.TensorProto]) -> None:
    total = 0
    for tensor in tensors:
        if len(tensor.dims) > DIMENSION_LIMIT:
            raise ModelRefusedError(
                f"weight {tensor.name[:80]!r}: expected at most {DIMENSION_LIMIT} dimensions; "
                f"got {len(tensor.dims)}"
            )
        if any(x < 0 for x in tensor.dims):
            raise ModelRefusedError(
                f"weight {tensor.name[:80]!r}: expected dimensions from 0; got {tensor.dims}"
            )
        total += _bytes_of(tensor)
        if total > TENSOR_LIMIT:
            raise ModelRefusedError(f"weights: expected at most {TENSOR_LIMIT} bytes; got more")


def _bytes_of(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(x) for x in tensor.string_data)
    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError as error:
        raise ModelRefusedError(f"weight {tensor.name[:80]!r}: unknown type {tensor.data_type}") from error
    size: int = math.prod(tensor.dims) * kind.itemsize
    return size


def _inline(tensor: onnx.TensorProto, folder: Path) -> int:
    """Read a weight that lies in a file beside the model; return how many bytes that were."""
    if not external_data_helper.uses_external_data(tensor):
        return 0
    facts = {x.key: x.value for x in tensor.external_data}
    name, location = tensor.name[:80], facts.get("location", "")
    shown = location[:80]
    path = folder / location
    inside = location and not Path(location).is_absolute() and ".." not in Path(location).parts
    try:
        inside = inside and folder.resolve() in path.resolve().parents
        there = path.is_file()
    except (OSError, ValueError) as error:  # a name that the file system cannot have
        raise ModelRefusedError(f"weight {name!r}: external data {shown!r}: {error!s:.80}") from error
    if not inside:
        raise ModelRefusedError(
            f"weight {name!r}: expected external data in the model's folder; got {shown!r}"
        )
    if not there:
        raise ModelRefusedError(f"weight {name!r}: expected a file {shown!r} beside the model; got none")
    want = _bytes_of(tensor)
    try:
        offset, length = int(facts.get("offset", 0)), int(facts.get("length", want))
    except ValueError as error:
        raise ModelRefusedError(f"weight {name!r}: {error!s:.200}") from error
    size = path.stat().st_size
    if length != want or offset < 0 or offset + length > size:
        raise ModelRefusedError(
            f"weight {name!r}: expected {want} bytes in {shown!r}; got {length} from {offset} of {size}"
        )
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]
    return length


def _check_weights(tensor: onnx.TensorProto) -> None:
    try:
        values = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelRefusedError(f"weight {tensor.name[:80]!r}: {one_line(error)}") from error
    if not np.issubdtype(values.dtype, np.floating):
        return
    # A single infinite number is how a clamp says "no bound".
    if np.isnan(values).any() or (values.size > 1 and np.isinf(values).any()):
        raise ModelRefusedError(f"weight {tensor.name[:80]!r}: expected finite numbers; got NaN or infinity")


def _check_structure(model: onnx.ModelProto, size: int) -> None:
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=False, data_prop=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelRefusedError(f"model: {one_line(error)}") from error
    breadth.check(inferred, size)
