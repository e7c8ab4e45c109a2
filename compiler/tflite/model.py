"""A TensorFlow Lite file as plain values.

The schema is TensorFlow's `schema.fbs`, version 3, whose generated reader ships with LiteRT.
"""

from __future__ import annotations

import functools
import re
import struct
from types import ModuleType
from typing import Any, Final

import msgspec
import numpy as np

from compiler.errors import ModelRefusedError
from compiler.placement.facts import Value
from fleet.errors import MissingExtraError

EXTRA: Final = "compiler-edgetpu"
IDENTIFIER: Final = b"TFL3"
#: Larger constants are data, no parameters of an operator.
SMALL: Final = 64
_ALIGNMENT: Final = 16
_DATATYPES: Final = {
    "FLOAT64": "FP64",
    "FLOAT32": "FP32",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "",
    "COMPLEX64": "",
    "COMPLEX128": "",
    "RESOURCE": "",
    "VARIANT": "",
}
_NUMPY: Final = {"INT32": "<i4", "INT64": "<i8"}
#: The fields of options that are numbers with names.
_NAMED: Final = {
    "fused_activation_function": "ActivationFunctionType",
    "padding": "Padding",
    "weights_format": "FullyConnectedOptionsWeightsFormat",
}


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor.

    Attributes:
        name: in the file.
        datatype: as the Open Inference Protocol names it, or as the schema does.
        shape: -1 for a dynamic dimension.
        data: the bytes of a constant, None for an activation.
        scales, zero_points: of quantized tensors: one, or one for each output channel.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | None = None
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()

    @property
    def value(self) -> tuple[int, ...] | None:
        """The numbers of a small integer constant."""
        kind = _NUMPY.get(self.datatype)
        if self.data is None or kind is None or len(self.data) > SMALL * 8:
            return None
        return tuple(np.frombuffer(self.data, kind).tolist())


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """One operator.

    Attributes:
        kind: such as "CONV_2D"; "CUSTOM" where `custom` names it.
        version: of the operator.
        inputs, outputs: places in the list of tensors; -1 for an optional input that is left out.
        attributes: by the schema's names, such as "stride_w"; numbers with names by those.
    """

    kind: str
    version: int
    custom: str = ""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: dict[str, Value] = {}


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """The file's only subgraph.

    Attributes:
        operators: in the order in which they run.
        inputs, outputs: places in the list of tensors.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@functools.cache
def schema() -> ModuleType:
    """Return the generated reader of the schema.

    Raises:
        MissingExtraError: LiteRT is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ModuleNotFoundError as error:
        raise MissingExtraError("TensorFlow Lite", EXTRA) from error
    module: ModuleType = schema_py_generated
    return module


def unpack(data: bytes) -> Any:  # noqa: ANN401 - generated code without types
    """Return the generated reader's own object.

    Raises:
        ModelRefusedError: no TensorFlow Lite file.
    """
    if data[4:8] != IDENTIFIER:
        raise ModelRefusedError(f"expected a TensorFlow Lite model; got {data[:8]!r}")
    reader = schema()
    try:
        return reader.ModelT.InitFromObj(reader.Model.GetRootAs(data, 0))
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ModelRefusedError(f"expected a TensorFlow Lite model; got a broken one: {error}") from error


def pack(model: Any) -> bytes:  # noqa: ANN401 - generated code without types
    """Return the bytes of the generated reader's object."""
    builder = _builder()(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


@functools.cache
def _builder() -> Any:  # noqa: ANN401 - a library without annotations
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]  # the library has no annotations
        """Puts weights where the schema wants them (`force_align: 16`), which its Python code forgets."""

        def StartVector(self, size: int, count: int, alignment: int) -> int:  # noqa: N802 - the library's name
            start: int = super().StartVector(size, count, _ALIGNMENT if size == 1 else alignment)
            return start

    return Aligned


def inlined(data: bytes) -> bytes:
    """Return a file with its weights inside the flatbuffer.

    Tools put the weights of larger models behind it, where `edgetpu_compiler` and older interpreters do not
    look.
    """
    model = unpack(data)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(data, np.uint8, int(buffer.size), int(buffer.offset))
        buffer.offset = buffer.size = 0
    return pack(model)


def parse(data: bytes) -> Graph:
    """Read a file.

    Raises:
        ModelRefusedError: no TensorFlow Lite file, or one with several subgraphs.
    """
    model = unpack(data)
    graphs = model.subgraphs or []
    if len(graphs) != 1:
        raise ModelRefusedError(f"expected a TensorFlow Lite model with one graph; got {len(graphs)}")
    graph = graphs[0]
    constants = [_constant(x) for x in _list(model.buffers)]
    try:
        return Graph(
            tensors=tuple(_tensor(x, constants) for x in _list(graph.tensors)),
            operators=tuple(_operator(x, _list(model.operatorCodes)) for x in _list(graph.operators)),
            inputs=_ints(graph.inputs),
            outputs=_ints(graph.outputs),
        )
    except (IndexError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ModelRefusedError(f"expected a TensorFlow Lite model; got a broken one: {error}") from error


def _list(values: Any) -> list[Any]:  # noqa: ANN401 - generated code without types
    return [] if values is None else list(values)


def _ints(values: Any) -> tuple[int, ...]:  # noqa: ANN401 - generated code without types
    return tuple(int(x) for x in _list(values))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8")


@functools.cache
def names_of(enumeration: str) -> dict[int, str]:
    """Return the names of an enumeration of the schema by their numbers."""
    found = vars(getattr(schema(), enumeration))
    return {value: name for name, value in found.items() if isinstance(value, int)}


def _constant(buffer: Any) -> bytes | None:  # noqa: ANN401 - generated code without types
    return None if buffer.data is None or not len(buffer.data) else bytes(np.asarray(buffer.data, np.uint8))


def _tensor(tensor: Any, constants: list[bytes | None]) -> Tensor:  # noqa: ANN401 - generated code without types
    kind = names_of("TensorType")[tensor.type]
    shape = _ints(tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape)
    if not 0 <= tensor.buffer < max(1, len(constants)):
        raise IndexError(f"buffer {tensor.buffer} of {len(constants)}")
    scaling = tensor.quantization
    return Tensor(
        name=_text(tensor.name),
        datatype=_DATATYPES.get(kind, kind),
        shape=shape,
        data=constants[tensor.buffer] if tensor.buffer else None,  # the first one stands for "none"
        scales=() if scaling is None else tuple(float(x) for x in _list(scaling.scale)),
        zero_points=() if scaling is None else _ints(scaling.zeroPoint),
    )


def _operator(operator: Any, codes: Any) -> Operator:  # noqa: ANN401 - generated code without types
    if not 0 <= operator.opcodeIndex < len(codes):
        raise IndexError(f"operator {operator.opcodeIndex} of {len(codes)}")
    code = codes[operator.opcodeIndex]
    return Operator(
        # Files older than the 128th operator have its number in the other field.
        kind=names_of("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)],
        version=int(code.version),
        custom=_text(code.customCode),
        inputs=_ints(operator.inputs),
        outputs=_ints(operator.outputs),
        attributes=_attributes(operator.builtinOptions),
    )


def _attributes(options: Any) -> dict[str, Value]:  # noqa: ANN401 - generated code without types
    found: dict[str, Value] = {}
    for field, value in (vars(options) if options is not None else {}).items():
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", field).lower()
        if name in _NAMED:
            found[name] = names_of(_NAMED[name]).get(value, str(value))
        elif isinstance(value, bool | int | float):
            found[name] = value
        elif isinstance(value, np.ndarray) and value.size <= SMALL:
            found[name] = tuple(value.tolist())
    return found
