"""What a weight tensor is to a delta: its kind of elements, and where its bytes lie."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.IntEnum):
    """What a tensor's elements are, as far as their differences care."""

    BYTE = 0
    INT32 = 1
    HALF = 2
    BRAIN = 3
    FLOAT = 4

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return {Kind.BYTE: 1, Kind.HALF: 2, Kind.BRAIN: 2}.get(self, 4)


class Tensor(NamedTuple):
    """One tensor's bytes in a file.

    Attributes:
        name: the same in both versions of the model, or "".
        start: offset of the first byte.
        size: in bytes.
        shape: the elements' arrangement; its product times the kind's size is `size`.
    """

    name: str
    kind: Kind
    start: int
    size: int
    shape: tuple[int, ...]


class Malformed(Exception):  # noqa: N818 - never leaves this package: such a file has no tensors
    """A file is not what its format says."""
