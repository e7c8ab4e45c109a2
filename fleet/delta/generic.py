"""What is no tensor: runs of old bytes found again, bytes in the place of old ones, and the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fleet.delta import form
from fleet.delta.form import Coded, Copy, Frame, Literal

#: A run of old bytes shorter than this is left to the compressor.
RUN: Final = 24
#: A run shorter than this, in its old place, does not break up what stands in the place of old bytes.
LONG: Final = 4096
#: Bytes that are looked up among the old ones.
_WORD: Final = 32
#: New bytes whose look-up is done at a time.
_STRIDE: Final = 1 << 20
#: Gaps up to this size are left to the compressor, but for their beginnings and ends.
_SMALL: Final = 4096
#: Old bytes around a literal that its compression may lean on.
_AROUND: Final = 64 * 1024
_MIX: Final = tuple(
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
)

Hashes: TypeAlias = npt.NDArray[np.uint64]


class Gap(NamedTuple):
    """A part of the new file, and the part of the old one that stands in its place."""

    start: int
    end: int
    old_start: int
    old_end: int


class Match(NamedTuple):
    """New bytes that are old bytes."""

    start: int
    old: int
    size: int


class Piece(NamedTuple):
    """New bytes that are nowhere among the old ones, and the old bytes in whose place they stand."""

    start: int
    end: int
    old: int


class Index:
    """The old file's words, to be found again anywhere in the new one."""

    def __init__(self, old: bytes) -> None:
        """Hash the old file's words when they are first looked for."""
        self._old: Final = old

    @functools.cached_property
    def _words(self) -> tuple[Hashes, npt.NDArray[np.intp]]:
        """Their hashes in order, and where each stands; of those that stand there twice, the first counts."""
        old = self._old
        whole = np.frombuffer(old, np.uint64, len(old) // _WORD * (_WORD // 8)).reshape(-1, _WORD // 8)
        with np.errstate(over="ignore"):
            hashes = np.asarray(sum(whole[:, k] * mix for k, mix in enumerate(_MIX)), np.uint64)
        return np.unique(hashes, return_index=True)

    def matches(self, new: bytes, start: int, end: int) -> Iterator[Match]:
        """Yield runs of old bytes in a part of the new file, from front to back."""
        done, (known, places) = start, self._words
        for begin in range(start, end - _WORD + 1, _STRIDE) if len(known) else ():
            part = new[begin : min(end, begin + _STRIDE + _WORD - 1)]
            hashes = _rolling(part)
            found = np.searchsorted(known, hashes).clip(0, len(known) - 1)
            for offset in np.flatnonzero(known[found] == hashes).tolist():
                at, old = begin + offset, int(places[found[offset]]) * _WORD
                if at < done or new[at : at + _WORD] != self._old[old : old + _WORD]:
                    continue
                back = _alike_back(new, self._old, at, old, at - done)
                size = back + _alike(new, self._old, at, old, end - at)
                yield Match(at - back, old - back, size)
                done = at - back + size


def _rolling(data: bytes) -> Hashes:
    """Return the hash of the word at every offset."""
    count = len(data) - _WORD + 1
    eights = np.empty(len(data) - 7, np.uint64)
    for k in range(8):
        eights[k::8] = np.frombuffer(data, np.uint64, (len(data) - k) // 8, k)
    with np.errstate(over="ignore"):
        return np.asarray(sum(eights[8 * k : 8 * k + count] * mix for k, mix in enumerate(_MIX)), np.uint64)


def _alike(a: bytes, b: bytes, at: int, old: int, most: int) -> int:
    """Return how many bytes agree from two offsets on."""
    most = min(most, len(b) - old)
    done, step = 0, 64
    while done < most:
        size = min(step, most - done)
        x, y = a[at + done : at + done + size], b[old + done : old + done + size]
        if x != y:
            return done + int(np.argmax(np.frombuffer(x, np.uint8) != np.frombuffer(y, np.uint8)))
        done, step = done + size, min(2 * step, 1 << 20)
    return done


def _alike_back(a: bytes, b: bytes, at: int, old: int, most: int) -> int:
    """Return how many bytes agree before two offsets."""
    most = min(most, old, 1 << 16)
    x, y = (
        np.frombuffer(a, np.uint8, most, at - most)[::-1],
        np.frombuffer(b, np.uint8, most, old - most)[::-1],
    )
    differs = np.flatnonzero(x != y)
    return int(differs[0]) if len(differs) else most


def parts(new: bytes, old: bytes, gap: Gap, index: Index) -> list[Copy | Piece]:
    """Return how a gap is made: of runs of old bytes, and of pieces between them."""
    found: list[Copy | Piece] = []
    at, shift = gap.start, gap.old_start - gap.start
    for match in _matches(new, old, gap, index):
        # Between bytes that differ here and there, short runs are better left to the differences.
        if match.size < (LONG if match.old - match.start == shift and match.start > at else RUN):
            continue
        if match.start > at:
            found.append(_piece(new, old, at, match.start, (shift, match.old - match.start)))
        found.append(Copy(match.old, match.size))
        at, shift = match.start + match.size, match.old - match.start
    if gap.end > at:
        found.append(_piece(new, old, at, gap.end, (shift, gap.old_end - gap.end)))
    return found


def _piece(new: bytes, old: bytes, start: int, end: int, shifts: tuple[int, int]) -> Piece:
    """Return a piece in whichever place among the old bytes, that of before or of behind, is more alike."""
    before, behind = ((_agreeing(new, old, start, end, shift), shift) for shift in shifts)
    return Piece(start, end, start + (behind if behind[0] > before[0] else before)[1])


def _agreeing(new: bytes, old: bytes, start: int, end: int, shift: int) -> int:
    """Return how many bytes are those that stand so much further in the old file."""
    start, end = max(start, -shift), min(end, len(old) - shift)
    if end <= start:
        return 0
    a = np.frombuffer(new, np.uint8, end - start, start)
    return int(np.count_nonzero(a == np.frombuffer(old, np.uint8, end - start, start + shift)))


def _matches(new: bytes, old: bytes, gap: Gap, index: Index) -> Iterator[Match]:
    size, room = gap.end - gap.start, gap.old_end - gap.old_start
    before = _alike(new, old, gap.start, gap.old_start, min(size, room))
    if before:
        yield Match(gap.start, gap.old_start, before)
    behind = _alike_back(new, old, gap.end, gap.old_end, min(size, room) - before)
    if size > _SMALL:
        yield from index.matches(new, gap.start + before, gap.end - behind)
    if behind:
        yield Match(gap.end - behind, gap.old_end - behind, behind)


def joined(steps: list[Copy | Literal | Coded]) -> list[Copy | Literal | Coded]:
    """Return the steps with neighbours that are one made one."""
    found: list[Copy | Literal | Coded] = []
    for step in steps:
        last = found[-1] if found else None
        if isinstance(step, Copy) and isinstance(last, Copy) and last.start + last.size == step.start:
            found[-1] = Copy(last.start, last.size + step.size)
        elif isinstance(step, Literal) and isinstance(last, Literal):
            found[-1] = Literal(last.size + step.size)
        else:
            found.append(step)
    return found


def frames(new: bytes, old: bytes, pieces: list[Piece]) -> tuple[list[Frame], list[bytes]]:
    """Return the frames that hold these literals, and their bytes."""
    heads, packed = [], []
    for group in _grouped(pieces):
        data = b"".join(new[piece.start : piece.end] for piece in group)
        ranges = _around(group, len(old))
        block = form.compress(data, b"".join(old[start : start + size] for start, size in ranges))
        heads.append(Frame(len(data), len(block), ranges))
        packed.append(block)
    return heads, packed


def _grouped(pieces: list[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size = 0
    for whole in pieces:
        for start in range(whole.start, whole.end, form.FRAME // 2):
            end = min(whole.end, start + form.FRAME // 2)
            if size + end - start > form.FRAME:
                yield group
                group, size = [], 0
            group.append(Piece(start, end, whole.old + start - whole.start))
            size += end - start
    if group:
        yield group


def _around(group: list[Piece], size: int) -> tuple[tuple[int, int], ...]:
    """Return the old bytes near these pieces, in as few ranges as they lie."""
    wanted = sorted((max(0, x.old - _AROUND), min(size, x.old + x.end - x.start + _AROUND)) for x in group)
    merged: list[tuple[int, int]] = []
    for start, end in wanted:
        if end <= start:
            continue
        if merged and start <= merged[-1][1] + _AROUND:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    room = form.DICTIONARY
    found = []
    for start, end in merged:
        taken = min(end - start, room)
        room -= taken
        if taken:
            found.append((start, taken))
    return tuple(found)
