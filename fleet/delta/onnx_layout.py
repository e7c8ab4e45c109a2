"""Where the initializers lie in an ONNX file, read from its protobuf wire format alone.

Field numbers are those of `onnx.proto`: ModelProto.graph 7; GraphProto.node 1, initializer 5; NodeProto
attribute 5; AttributeProto t 5; TensorProto dims 1, data_type 2, name 8, raw_data 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from fleet.delta.tensor import Kind, Malformed, Tensor

_GRAPH: Final = 7
_NODE: Final = 1
_INITIALIZER: Final = 5
_ATTRIBUTE: Final = 5
_VALUE: Final = 5
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9
#: TensorProto.DataType.
_KINDS: Final = {
    1: Kind.FLOAT,
    2: Kind.BYTE,
    3: Kind.BYTE,
    6: Kind.INT32,
    10: Kind.HALF,
    16: Kind.BRAIN,
    17: Kind.BYTE,
    19: Kind.BYTE,
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    """One field of a message: its number, and a varint's value or where its bytes lie."""

    number: int
    value: int
    start: int
    end: int


def tensors(data: bytes) -> list[Tensor]:
    """Return the tensors of an ONNX file.

    Raises:
        Malformed: it is none.
    """
    found = []
    for graph in _fields(data, 0, len(data)):
        if graph.number != _GRAPH:
            continue
        for field in _fields(data, graph.start, graph.end):
            if field.number == _INITIALIZER:
                found += _tensor(data, field, "")
            elif field.number == _NODE:
                found += _constants(data, field)
    return found


def _constants(data: bytes, node: _Field) -> list[Tensor]:
    """Return the values of a node's attributes; a `Constant` node's output names it."""
    fields = list(_fields(data, node.start, node.end))
    name = next((data[x.start : x.end].decode(errors="replace") for x in fields if x.number == 2), "")  # noqa: PLR2004 - NodeProto.output
    return [
        tensor
        for attribute in fields
        if attribute.number == _ATTRIBUTE
        for value in _fields(data, attribute.start, attribute.end)
        if value.number == _VALUE
        for tensor in _tensor(data, value, name)
    ]


def _tensor(data: bytes, message: _Field, name: str) -> list[Tensor]:
    dims: list[int] = []
    kind, raw = None, None
    for field in _fields(data, message.start, message.end):
        if field.number == _DIMS:
            dims += _packed(data, field) if field.end > field.start else [field.value]
        elif field.number == _TYPE:
            kind = _KINDS.get(field.value)
        elif field.number == _NAME:
            name = data[field.start : field.end].decode(errors="replace")
        elif field.number == _RAW:
            raw = field
    if kind is None or raw is None:
        return []
    return [Tensor(name, kind, raw.start, raw.end - raw.start, tuple(dims))]


def _packed(data: bytes, field: _Field) -> list[int]:
    values, at = [], field.start
    while at < field.end:
        value, at = _number(data, at, field.end)
        values.append(value)
    return values


def _fields(data: bytes, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        key, at = _number(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _number(data, at, end)
            yield _Field(number, value, at, at)
            continue
        if wire == _BYTES:
            size, at = _number(data, at, end)
        elif wire in {_FIXED32, _FIXED64}:
            size = 4 if wire == _FIXED32 else 8
        else:
            raise Malformed
        if size > end - at:
            raise Malformed
        yield _Field(number, 0, at, at + size)
        at += size


def _number(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004 - protobuf's continuation bit
            return value, at
        if shift > 63:  # noqa: PLR2004 - protobuf's longest varint
            break
    raise Malformed
