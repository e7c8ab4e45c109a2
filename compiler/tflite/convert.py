"""From an ONNX model to a float TensorFlow Lite file that answers the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx

from compiler import toolchains
from compiler.data.datasets import Dataset, spread
from compiler.errors import CompileError
from compiler.measuring.evaluate import snr
from compiler.onnx_session import Session
from compiler.placement.facts import NodeFact, TensorFact
from compiler.placement.rules import Unit, decide
from compiler.ports import Job
from compiler.tensors import Array, datatype
from compiler.tflite import facts, prepare, rewrite
from compiler.tflite import model as tflite
from compiler.tflite.running import Watched
from firmware_profiles.profile import Profile
from fleet.bundle.interface import Interface, Port, Stored, outward

TOOLCHAIN: Final = "onnx2tf"
#: A conversion that answers less exactly has changed the model: both compute in float32.
PARITY_DB: Final = 60.0
SAMPLES: Final = 4
_CHANNELS_LAST: Final = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """The float file.

    Attributes:
        path: where it is.
        interface: what an application feeds and gets.
        graph: what it holds.
    """

    path: Path
    interface: Interface
    graph: tflite.Graph


def convert(job: Job) -> Converted:
    """Convert a model, and check that it answers as before.

    Raises:
        CompileError: it cannot be converted, or answers otherwise.
        MissingToolchainError: the converter is not installed.
    """
    prepared = prepare.prepare(job.model, job.calibration.feed(0), job.scratch)
    source = job.scratch / "prepared.onnx"
    onnx.save(prepared, source)
    answer = toolchains.environment(TOOLCHAIN).call(
        "onnx2tf",
        {"model": str(source), "inputs": [x.name for x in prepared.graph.input], "folder": str(job.scratch)},
        scratch=job.scratch,
        limits=job.limits,
    )
    tried = [
        _layout(answer, layout, prepared=prepared, source=source, job=job) for layout in ("turned", "kept")
    ]
    found = [x for x in tried if isinstance(x, Converted)]
    if not found:
        raise CompileError(f"the model cannot be converted to TensorFlow Lite: {tried[-1]}")
    return max(found, key=lambda x: _merit(x, job.profile))


def _layout(
    answer: Mapping[str, object], layout: str, *, prepared: onnx.ModelProto, source: Path, job: Job
) -> Converted | CompileError:
    """Return one of the converter's files, checked, or what is wrong with it."""
    if not answer[layout]:
        return CompileError(str(answer[f"{layout}_error"]))
    try:
        return _checked(Path(str(answer[layout])), prepared, source, job, turned=layout == "turned")
    except CompileError as error:
        return error


def _merit(converted: Converted, profile: Profile) -> tuple[int, int]:
    """Return what makes one layout better: more work on the accelerator, then fewer operators."""
    nodes = facts.facts(converted.graph).nodes
    # The types of a float file say nothing yet about those of the integer one.
    eight = [_as_int8(x) for x in nodes]
    decisions = decide(profile, eight)
    macs = sum(
        x.macs or 0 for x, where in zip(nodes, decisions, strict=True) if where.unit is Unit.ACCELERATOR
    )
    return macs, -len(nodes)


def _as_int8(node: NodeFact) -> NodeFact:
    def swapped(tensors: tuple[TensorFact, ...]) -> tuple[TensorFact, ...]:
        return tuple(msgspec.structs.replace(x, dtype="INT8") if x.dtype == "FP32" else x for x in tensors)

    return msgspec.structs.replace(node, inputs=swapped(node.inputs), outputs=swapped(node.outputs))


def _checked(path: Path, model: onnx.ModelProto, source: Path, job: Job, *, turned: bool) -> Converted:
    """Find out which axis is which, and compare the answers."""
    data = path.read_bytes()
    inputs, outputs = rewrite.order(data)
    data = rewrite.rewrite(data, inputs, outputs)
    path.write_bytes(data)
    graph = tflite.parse(data)
    given = {x.name: x for x in model.graph.input}
    made = {x.name: x for x in model.graph.output}
    if set(inputs) != set(given) or set(outputs) != set(made):
        raise CompileError(f"expected the inputs {sorted(given)} and outputs {sorted(made)}; got others")
    ports = Interface(
        inputs=tuple(
            _input(given[x], graph.tensors[i], turned) for x, i in zip(inputs, graph.inputs, strict=True)
        ),
        outputs=tuple(_output(made[x]) for x in outputs),
    )
    return Converted(path=path, interface=_compared(path, ports, source, job.calibration), graph=graph)


def _input(value: onnx.ValueInfoProto, tensor: tflite.Tensor, turned: bool) -> Port:
    port = _output(value)
    axes = _CHANNELS_LAST.get(len(port.shape), ()) if turned else ()
    want = tuple(port.shape[x] for x in axes or range(len(port.shape)))
    if tensor.shape != want and (want, tensor.shape) != ((), (1,)):
        raise CompileError(
            f"input {port.name!r}: expected shape {list(port.shape)}; got {list(tensor.shape)}"
        )
    return msgspec.structs.replace(port, axes=axes)


def _output(value: onnx.ValueInfoProto) -> Port:
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = tuple(x.dim_value for x in value.type.tensor_type.shape.dim)
    return Port(name=value.name, datatype=datatype(kind, value.name), shape=shape)


def _compared(path: Path, ports: Interface, source: Path, data: Dataset) -> Interface:
    """Return the interface with the order of each output's axes under which it answers as the source does."""
    runner, original = Watched(path, ports), Session(source)
    rows = spread(data, SAMPLES)
    feeds = [data.feed(int(i)) for i in rows]
    want = [original.run(x) for x in feeds]
    got = [runner.answer(x) for x in feeds]
    outputs = tuple(
        _turned(port, [x[port.name] for x in want], [x[i] for x in got])
        for i, port in enumerate(ports.outputs)
    )
    return msgspec.structs.replace(ports, outputs=outputs)


def _turned(port: Port, want: Sequence[Array], got: Sequence[Array]) -> Port:
    choices = []
    for axes in ((), _CHANNELS_LAST.get(len(port.shape), ())):
        turned = msgspec.structs.replace(port, axes=axes)
        if [port.shape[x] for x in axes or range(len(port.shape))] == list(got[0].shape):
            seen = [outward(turned, x, Stored(dtype=x.dtype.name, shape=x.shape)) for x in got]
            choices.append((snr(np.stack(want), np.stack(seen)), turned))
    if not choices:
        raise CompileError(
            f"output {port.name!r}: expected shape {list(port.shape)}; got {list(got[0].shape)}"
        )
    best, turned = max(choices, key=lambda x: x[0])
    if best < PARITY_DB:
        raise CompileError(
            f"output {port.name!r}: expected the converted float model to answer as the source does "
            f"({PARITY_DB:.0f} dB); got {best:.0f} dB"
        )
    return turned
