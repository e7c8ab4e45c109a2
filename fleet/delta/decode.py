"""Making a new file from an old one and a delta, piece by piece.

Memory stays under some 20 MB whatever the files' sizes: the old file and the delta are read by ranges, and
the new file comes out front to back. A delta is not trusted: whoever calls this checks the new file's digest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import numpy as np

from fleet.delta import form, low_rank, residual
from fleet.delta.form import Coded, Copy, Frame, Head
from fleet.delta.rans import Bytes, Coder, Tables
from fleet.delta.residual import LEVELS, Place, Side
from fleet.delta.tensor import Kind
from fleet.errors import DeltaError

#: Returns so many bytes of a file from an offset, fewer only at its end.
Read: TypeAlias = Callable[[int, int], bytes]

_LENGTH: Final = struct.Struct("<I")


def apply(delta: Read, old: Read, size: int) -> Iterator[bytes]:
    """Yield the new file's pieces.

    Args:
        delta: reads the delta.
        old: reads the old file.
        size: of the new file, which the caller knows from elsewhere.

    Raises:
        DeltaError: the delta is malformed, or made for other files.
    """
    magic, length = form.START.unpack(_exactly(delta, 0, form.START.size))
    if magic != form.MAGIC or length > form.HEAD_LIMIT:
        raise DeltaError("delta: expected a delta")
    head = form.decode(_exactly(delta, form.START.size, length))
    if head.new_size != size:
        raise DeltaError(f"delta: expected one for a file of {size} bytes, got {head.new_size}")
    begin = form.START.size + length
    literals = _Literals(_Cursor(delta, begin), old, head.frames)
    blocks = _Cursor(delta, begin + sum(frame.packed for frame in head.frames))
    coders = _Coders(head)
    for step in head.steps:
        if isinstance(step, Copy):
            yield from _copy(old, step)
        elif isinstance(step, Coded):
            yield from _Tensor(step, old, blocks, coders).pieces()
        else:
            yield from literals.take(step.size)


def _exactly(read: Read, start: int, size: int) -> bytes:
    data = read(start, size)
    if len(data) != size:
        raise DeltaError(f"delta: expected {size} bytes from {start}, got {len(data)}")
    return data


def _copy(old: Read, step: Copy) -> Iterator[bytes]:
    for at in range(step.start, step.start + step.size, form.FRAME):
        yield _exactly(old, at, min(form.FRAME, step.start + step.size - at))


class _Cursor:
    """A part of the delta that is read from front to back."""

    def __init__(self, read: Read, start: int) -> None:
        self._read: Final = read
        self._at = start

    def take(self, size: int) -> bytes:
        data = _exactly(self._read, self._at, size)
        self._at += size
        return data


class _Literals:
    """The bytes of the frames, one frame in memory at a time."""

    def __init__(self, cursor: _Cursor, old: Read, frames: tuple[Frame, ...]) -> None:
        self._cursor: Final = cursor
        self._old: Final = old
        self._frames: Final = iter(frames)
        self._ready = memoryview(b"")

    def take(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._ready:
                self._ready = memoryview(self._next(next(self._frames)))
            piece = self._ready[:size]
            self._ready = self._ready[size:]
            size -= len(piece)
            yield bytes(piece)

    def _next(self, frame: Frame) -> bytes:
        dictionary = b"".join(_exactly(self._old, start, size) for start, size in frame.old)
        return form.decompress(self._cursor.take(frame.packed), frame.size, dictionary)


class _Coders:
    """The frequency tables of each kind of elements, laid out when they are first needed."""

    def __init__(self, head: Head) -> None:
        self._head: Final = head
        self._ready: Final[dict[Kind, tuple[Bytes, Coder]]] = {}

    def of(self, kind: Kind) -> tuple[Bytes, Coder]:
        """Return which table each level uses, and the tables."""
        if kind not in self._ready:
            given = self._head.tables[kind]
            coder = Coder(Tables.decode(given.tables), form.PER_LANE[kind])
            chosen = np.frombuffer(given.levels, np.uint8)
            if len(chosen) != LEVELS or int(chosen.max()) >= coder.contexts:
                raise DeltaError("delta: expected a frequency table for each level")
            self._ready[kind] = (chosen, coder)
        return self._ready[kind]


class _Tensor:
    """One tensor, made block by block."""

    def __init__(self, step: Coded, old: Read, cursor: _Cursor, coders: _Coders) -> None:
        self._step: Final = step
        self._old: Final = old
        self._cursor: Final = cursor
        self._side: Final = read_side(step, cursor.take(step.side))
        self._tables, self._coder = coders.of(step.kind)

    def pieces(self) -> Iterator[bytes]:
        step = self._step
        for start in range(0, step.count, form.BLOCK[step.kind]):
            yield self._block(Place(start, min(form.BLOCK[step.kind], step.count - start), step.width))

    def _block(self, place: Place) -> bytes:
        kind = self._step.kind
        at = self._step.start + place.start * kind.size
        old = residual.ordered(_exactly(self._old, at, place.size * kind.size), kind)
        expected = residual.predict(old, kind, self._side, place)
        contexts = self._tables[residual.levels(expected, kind, self._side, place)]
        (length,) = _LENGTH.unpack(self._cursor.take(_LENGTH.size))
        if length > 4 * (place.size + self._coder.lanes(place.size)):
            raise DeltaError("delta: a block is longer than its elements can take")
        symbols = self._coder.decode(self._cursor.take(length), contexts)
        widths = residual.widths(symbols, kind)
        rest = residual.unpack(self._cursor.take(residual.packed_size(widths)), widths)
        return residual.stored(expected + residual.joined(symbols, rest, kind), kind)


def read_side(step: Coded, data: bytes) -> Side:
    """Return what is sent beside a tensor.

    Raises:
        DeltaError: malformed.
    """
    height = step.count // step.width
    ends = (step.rows, step.rows + step.columns, step.rows + step.columns + 2 * abs(step.ratios))
    size = ends[2] + low_rank.encoded_size(step.rank, height, step.width)
    raw = form.decompress(data, size) if size else b""
    return Side(
        base=step.base,
        rows=np.frombuffer(raw[: ends[0]], np.int8),
        columns=np.frombuffer(raw[ends[0] : ends[1]], np.int8),
        ratios=np.frombuffer(raw[ends[1] : ends[2]], "<i2"),
        ratio=step.ratio,
        ratios_by_row=step.ratios > 0,
        factors=low_rank.decode(raw[ends[2] :], step.rank, height, step.width)
        if step.rank
        else low_rank.NONE,
    )
