"""The form of a delta: a head, literal bytes compressed in frames, and what is coded of tensors.

::

    "KDL1"  u32 length of the head  head (zstd, MessagePack)  frames (zstd)  tensors' side and blocks

The three parts are each read from front to back, so that what applies a delta needs little memory.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import zstandard

from fleet.delta import low_rank
from fleet.delta.tensor import Kind
from fleet.errors import DeltaError

MAGIC: Final = b"KDL1"
START: Final = struct.Struct("<4sI")
#: Bytes of a head, compressed or not.
HEAD_LIMIT: Final = 4 * 1024 * 1024
#: Bytes that one frame of literals holds, and old bytes that it may lean on.
FRAME: Final = 1024 * 1024
DICTIONARY: Final = 4 * 1024 * 1024
#: Steps of a delta.
STEPS: Final = 65536
#: Rows and columns that a tensor may have levels or ratios for.
SIDES: Final = 1 << 19
#: Elements of a block of a tensor, and of them those that one lane of the entropy coder takes.
BLOCK: Final = {kind: 1 << (18 if kind == Kind.BYTE else 17) for kind in Kind}
PER_LANE: Final = {kind: 2048 if kind == Kind.BYTE else 512 for kind in Kind}


class Copy(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Old bytes, as they are."""

    start: int
    size: int


class Literal(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The next bytes of the frames."""

    size: int


class Coded(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A tensor by its differences from old bytes; the lengths are of its side, before and after compression.

    Attributes:
        rows, columns: how many levels there are of each, 0 for none.
        ratios: how many; negative when by column.
        ratio: of new to old for the whole tensor.
        rank: how many outer products are added to what is expected.
    """

    kind: Kind
    start: int
    count: int
    width: int
    base: int
    rows: int
    columns: int
    ratios: int
    ratio: float
    side: int
    rank: int = 0


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Literal bytes: how many, compressed into how many, and the old bytes that they lean on."""

    size: int
    packed: int
    old: tuple[tuple[int, int], ...]


class Tables(msgspec.Struct, frozen=True, array_like=True):
    """Frequency tables of one kind of elements, and which of them each level uses."""

    levels: bytes
    tables: bytes


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What a delta consists of, and the sizes of the files between which it stands."""

    old_size: int
    new_size: int
    steps: tuple[Copy | Literal | Coded, ...]
    frames: tuple[Frame, ...]
    tables: dict[Kind, Tables]


def encode(head: Head) -> bytes:
    """Return the bytes before the frames."""
    packed = compress(msgspec.msgpack.encode(head))
    return START.pack(MAGIC, len(packed)) + packed


def decode(packed: bytes) -> Head:
    """Read a head.

    Raises:
        DeltaError: malformed, or its numbers contradict each other.
    """
    try:
        head = msgspec.msgpack.decode(decompress(packed, HEAD_LIMIT, exact=False), type=Head)
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"delta: {error}") from error
    if len(head.steps) > STEPS or len(head.frames) > 1 + head.new_size // (FRAME // 4):
        raise DeltaError("delta: more steps or frames than any file needs")
    made = sum(_made(step, head) for step in head.steps)
    literal = sum(step.size for step in head.steps if isinstance(step, Literal))
    if made != head.new_size or literal != sum(frame.size for frame in head.frames):
        raise DeltaError(f"delta: the steps make {made} bytes, expected {head.new_size}")
    for frame in head.frames:
        ranges = [_within(start, size, head.old_size) for start, size in frame.old]
        if not 0 < frame.size <= FRAME or not 0 < frame.packed <= 2 * FRAME or sum(ranges) > DICTIONARY:
            raise DeltaError("delta: a frame is too large")
    return head


def _made(step: Copy | Literal | Coded, head: Head) -> int:
    if isinstance(step, Literal):
        if step.size <= 0:
            raise DeltaError("delta: an empty step")
        return step.size
    if isinstance(step, Copy):
        return _within(step.start, step.size, head.old_size)
    sides = (step.rows, step.columns, abs(step.ratios))
    positive = 0 < step.width <= step.count and min(step.rows, step.columns, step.side) >= 0
    if (
        not positive
        or max(sides) > SIDES
        or step.side > HEAD_LIMIT
        or step.kind not in head.tables
        or step.ratio != step.ratio
    ):
        raise DeltaError("delta: a tensor's numbers are out of range")
    rows, columns = -(-step.count // step.width), step.width
    expected = ({0, rows}, {0, columns}, {0, rows, -columns})
    if any(
        n not in allowed for n, allowed in zip((step.rows, step.columns, step.ratios), expected, strict=True)
    ):
        raise DeltaError("delta: expected a level for each row and column of a tensor")
    numbers = step.rank * (rows + columns)
    if not 0 <= step.rank <= low_rank.MOST or numbers > low_rank.MOST_NUMBERS:
        raise DeltaError("delta: more outer products than expected")
    if step.rank and (columns > low_rank.MOST_COLUMNS or step.kind != Kind.BYTE or step.count % columns):
        raise DeltaError("delta: outer products for what is no matrix of bytes")
    return _within(step.start, step.count * step.kind.size, head.old_size)


def _within(start: int, size: int, limit: int) -> int:
    if start < 0 or size <= 0 or start + size > limit:
        raise DeltaError(f"delta: expected a range within {limit} old bytes, got {size} from {start}")
    return size


def compress(data: bytes, old: bytes = b"", level: int = 19) -> bytes:
    """Return data compressed by zstd, leaning on old bytes."""
    longest = max(zstandard.WINDOWLOG_MIN, (len(data) + len(old)).bit_length())
    options = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=longest, source_size=len(data), enable_ldm=len(old) > FRAME, write_checksum=False
    )
    return zstandard.ZstdCompressor(compression_params=options, dict_data=_dictionary(old)).compress(data)


def decompress(packed: bytes, size: int, old: bytes = b"", *, exact: bool = True) -> bytes:
    """Return what was compressed.

    Args:
        packed: one frame of zstd.
        size: of the data; with `exact` false, the most that it may be.
        old: what it leans on.
        exact: whether the size is known.

    Raises:
        DeltaError: malformed, or of another size.
    """
    try:
        # What the frame claims is what the library sets aside, whatever limit it is given.
        claimed = zstandard.frame_content_size(packed)
        if claimed < 0 or claimed > size or (exact and claimed != size):
            raise DeltaError(f"delta: expected {size} compressed bytes, got {claimed}")
        decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary(old), max_window_size=1 << 27)
        return decompressor.decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeltaError(f"delta: {error}") from error


def _dictionary(old: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if old else None
