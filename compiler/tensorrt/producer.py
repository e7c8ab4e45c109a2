"""NVIDIA ModelOpt as a second producer of int8 models: called where it is installed, brought to our form."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from compiler import toolchains
from compiler.data.datasets import Dataset, spread
from compiler.errors import CompileError
from compiler.limits import Limits
from compiler.models import topology
from compiler.models.graphs import DEQUANTIZE, QUANTIZE, Graph, attribute
from compiler.toolchains.errors import MissingToolchainError

TOOLCHAIN: Final = "modelopt"
PACKAGE: Final = "nvidia-modelopt"
#: It holds all of the data at once.
SAMPLES: Final = 128
_LARGEST: Final = 127
#: They ask a tensor for its shape, for which it need not be quantized.
_SHAPES: Final = ("Shape", "Size")


def installed() -> str:
    """Return the version that is installed, "" where none is."""
    try:
        return toolchains.environment(TOOLCHAIN).versions.get(PACKAGE, "")
    except MissingToolchainError:
        return ""


def quantized(model: onnx.ModelProto, data: Dataset, scratch: Path, limits: Limits) -> onnx.ModelProto:
    """Return a model quantized by ModelOpt.

    Args:
        model: folded and fused.
        data: calibration samples; ModelOpt would invent some, and never gets the chance.
        scratch: a folder for intermediate files.
        limits: of its process.

    Raises:
        CompileError: it cannot quantize the model, or the model does not take batches of samples.
    """
    if not all(x.batched for x in data.tensors):
        raise CompileError(f"{TOOLCHAIN}: expected inputs whose first dimension counts samples; got others")
    feeds = [data.feed(x) for x in spread(data, SAMPLES).tolist()]
    source, out, samples = (scratch / f"{TOOLCHAIN}-{x}" for x in ("in.onnx", "out.onnx", "data.npz"))
    onnx.save(model, source)
    arrays = {x.name: np.concatenate([feed[x.name] for feed in feeds]) for x in data.tensors}
    with samples.open("wb") as file:
        np.savez(file, **arrays)
    request = {"model": str(source), "out": str(out), "data": str(samples)}
    toolchains.environment(TOOLCHAIN).call(TOOLCHAIN, request, scratch=scratch, limits=limits)
    return adopt(onnx.load(out))


def adopt(model: onnx.ModelProto) -> onnx.ModelProto:
    """Bring a model to our form, in place: int8 weights, shapes read before pairs, a DQ for each reader."""
    graph = Graph(model)
    gone = set()
    for node in graph.nodes:
        weights = graph.array(node.input[0]) if node.op_type == QUANTIZE else None
        if weights is not None:
            for reader in graph.readers[node.output[0]]:
                reader.input[0] = f"{node.input[0]}_q"
            integers = _integers(graph, node, weights)
            model.graph.initializer.append(numpy_helper.from_array(integers, f"{node.input[0]}_q"))
            gone.add(id(node))
        elif node.op_type in _SHAPES:
            before = graph.dequantized(node.input[0])
            quantize = graph.maker(before.input[0]) if before is not None else None
            if quantize is not None:
                node.input[0] = quantize.input[0]
    kept = [x for x in graph.nodes if id(x) not in gone]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _drop_unread(model)
    _part(model)
    return model


def _part(model: onnx.ModelProto) -> None:
    """Give each reader a DequantizeLinear of its own, so that each is fused and typed with its own."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type != DEQUANTIZE or node.output[0] in graph.outputs:
            continue
        for place, reader in enumerate(graph.readers[node.output[0]][1:], 1):
            twin = onnx.NodeProto()
            twin.CopyFrom(node)
            twin.name, twin.output[0] = f"{node.name}_{place}", f"{node.output[0]}_{place}"
            model.graph.node.append(twin)
            for position, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[position] = twin.output[0]
    topology.sort(model.graph)


def _integers(graph: Graph, node: onnx.NodeProto, weights: npt.NDArray[np.generic]) -> npt.NDArray[np.int8]:
    scale = graph.array(node.input[1])
    if scale is None:
        raise CompileError(f"{TOOLCHAIN}: {node.name}: expected a constant scale; got one that is computed")
    shape = [1] * weights.ndim
    if scale.size > 1:
        shape[attribute(node, "axis", 1)] = scale.size
    steps = np.rint(
        weights.astype(np.float32) / scale.astype(np.float32).reshape(shape if weights.ndim else ())
    )
    return np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8)


def _drop_unread(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    dead = [
        x
        for x in graph.nodes
        if x.op_type == DEQUANTIZE and not graph.readers[x.output[0]] and x.output[0] not in graph.outputs
    ]
    for node in dead:
        model.graph.node.remove(node)
    read = Graph(model).readers
    for tensor in [x for x in model.graph.initializer if not read[x.name] and x.name not in graph.outputs]:
        model.graph.initializer.remove(tensor)
