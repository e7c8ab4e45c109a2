"""Where the weights lie in a TFLite file, read from its FlatBuffer alone.

Slots of tables are those of TensorFlow's `schema.fbs`: Model.subgraphs 2, buffers 4; SubGraph.tensors 0;
Tensor shape 0, type 1, buffer 2, name 3; Buffer.data 0.
"""

from __future__ import annotations

import struct
from typing import Final

from fleet.delta.tensor import Kind, Malformed, Tensor

_MAGIC: Final = b"TFL3"
#: TensorType.
_KINDS: Final = {0: Kind.FLOAT, 1: Kind.HALF, 2: Kind.INT32, 3: Kind.BYTE, 9: Kind.BYTE, 17: Kind.BYTE}
#: More entries than any model has: a vector that claims more is nonsense.
_MOST: Final = 1 << 20


class _Buffer:
    """A FlatBuffer whose offsets are all checked."""

    def __init__(self, data: bytes) -> None:
        self._data: Final = data

    def number(self, code: str, at: int) -> int:
        try:
            value: int = struct.unpack_from(code, self._data, at)[0]
        except struct.error as error:
            raise Malformed from error
        return value

    def slot(self, table: int, slot: int) -> int:
        """Return where a table's field lies, 0 when it is not there."""
        vtable = table - self.number("<i", table)
        if vtable < 0:
            raise Malformed
        if 4 + 2 * slot >= self.number("<H", vtable):
            return 0
        offset = self.number("<H", vtable + 4 + 2 * slot)
        return table + offset if offset else 0

    def follow(self, at: int) -> int:
        return at + self.number("<I", at)

    def vector(self, table: int, slot: int) -> tuple[int, int]:
        """Return where a vector's first entry lies, and how many it has."""
        at = self.slot(table, slot)
        if not at:
            return 0, 0
        start = self.follow(at)
        return start + 4, self.number("<I", start)

    def tables(self, table: int, slot: int) -> list[int]:
        start, count = self.vector(table, slot)
        if count > _MOST:
            raise Malformed
        return [self.follow(start + 4 * i) for i in range(count)]

    def text(self, table: int, slot: int) -> str:
        start, count = self.vector(table, slot)
        return self._data[start : start + count].decode(errors="replace")


def tensors(data: bytes) -> list[Tensor]:
    """Return the tensors of a TFLite file.

    Raises:
        Malformed: it is none.
    """
    if data[4:8] != _MAGIC:
        raise Malformed
    buffer = _Buffer(data)
    model = buffer.follow(0)
    buffers = [buffer.vector(table, 0) for table in buffer.tables(model, 4)]
    found = {}
    for graph in buffer.tables(model, 2):
        for table in buffer.tables(graph, 0):
            at_type, at_buffer = buffer.slot(table, 1), buffer.slot(table, 2)
            kind = _KINDS.get(buffer.number("<b", at_type) if at_type else 0)
            index = buffer.number("<I", at_buffer) if at_buffer else 0
            if kind is None or index >= len(buffers) or not buffers[index][1]:
                continue
            start, count = buffer.vector(table, 0)
            shape = tuple(buffer.number("<i", start + 4 * i) for i in range(min(count, 8)))
            found[index] = Tensor(buffer.text(table, 3), kind, *buffers[index], shape)
    return list(found.values())
