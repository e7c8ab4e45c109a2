"""An entropy coder with a choice of frequency tables per symbol, for whole arrays at a time.

It is range asymmetric numeral coding (J. Duda, "Asymmetric numeral systems", arXiv:1311.2540) with 32-bit
states, 16-bit words and 12-bit frequencies. Many states, the *lanes*, take turns on the symbols (F. Giesen,
"Interleaved entropy coders", arXiv:1402.3392), so that one step of all lanes is a few array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fleet.errors import DeltaError

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint16]
Counts: TypeAlias = npt.NDArray[np.int64]

_BITS: Final = 12
_TOTAL: Final = 1 << _BITS
_LOW: Final = 1 << 16
#: Symbols of an alphabet, and tables: what a decoder's memory bears.
SYMBOLS: Final = 256
TABLES: Final = 64
_ESCAPE: Final = 0x80


class Tables(NamedTuple):
    """Frequencies of symbols, one table per context, each summing to 4096.

    Attributes:
        frequencies: tables by symbols.
    """

    frequencies: npt.NDArray[np.uint16]

    def encode(self) -> bytes:
        """Return the tables' bytes: runs of zeros and frequencies as varints."""
        out = bytearray([len(self.frequencies)])
        for row in self.frequencies.tolist():
            used = [i for i, value in enumerate(row) if value]
            last = -1
            _varint(out, len(used))
            for i in used:
                _varint(out, i - last - 1)
                _varint(out, row[i])
                last = i
        return bytes(out)

    @staticmethod
    def decode(data: bytes) -> Tables:
        """Read tables.

        Raises:
            DeltaError: malformed.
        """
        values = _varints(data[1:])
        if not data or not 0 < data[0] <= TABLES:
            raise DeltaError("delta: expected 1 to 64 frequency tables")
        found, at = np.zeros((data[0], SYMBOLS), np.uint16), 0
        for row in found:
            count = values[at] if at < len(values) else SYMBOLS + 1
            pairs = values[at + 1 : at + 1 + 2 * count]
            places = np.cumsum(np.array(pairs[::2], np.int64) + 1) - 1
            if (
                count > SYMBOLS
                or len(pairs) != 2 * count
                or sum(pairs[1::2]) != _TOTAL
                or places[-1] >= SYMBOLS
            ):
                raise DeltaError("delta: a frequency table does not add up")
            row[places] = pairs[1::2]
            at += 1 + 2 * count
        if at != len(values):
            raise DeltaError("delta: bytes after the last frequency table")
        return Tables(found)


def _varint(out: bytearray, value: int) -> None:
    while value >= _ESCAPE:
        out.append(value & 0x7F | _ESCAPE)
        value >>= 7
    out.append(value)


def _varints(data: bytes) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < _ESCAPE:
            found.append(value)
            value = shift = 0
        elif shift > 2 * 7:
            raise DeltaError("delta: a number in a frequency table is too long")
    return found


def tables(counts: Sequence[Counts]) -> Tables:
    """Return tables for symbols that occur this often; every symbol that occurs gets a frequency."""
    return Tables(np.array([_normalised(row) for row in counts], np.uint16))


def _normalised(counts: Counts) -> Counts:
    if not counts.any():
        only = np.zeros(SYMBOLS, np.int64)
        only[0] = _TOTAL
        return only
    wanted = counts * (_TOTAL / counts.sum())
    found = np.maximum(np.rint(wanted).astype(np.int64), counts > 0)
    while (excess := int(found.sum()) - _TOTAL) != 0:
        # Take from the largest, or give to it: there it changes least.
        largest = int(found.argmax())
        found[largest] -= min(excess, int(found[largest]) // 2)
    return found


def cost(counts: Counts) -> float:
    """Return how many bits symbols that occur this often take."""
    seen = counts[counts > 0].astype(float)
    return float(-(seen * np.log2(seen / seen.sum())).sum()) if len(seen) else 0.0


class Coder:
    """Tables made ready for coding."""

    def __init__(self, frequencies: Tables, per_lane: int = 2048) -> None:
        """Lay the tables out for look-ups by context and slot.

        Args:
            frequencies: the tables.
            per_lane: symbols that one lane takes: fewer cost bytes, more cost time.
        """
        self._per_lane: Final = per_lane
        freq = frequencies.frequencies.astype(np.uint32)
        starts = np.cumsum(freq, axis=1, dtype=np.uint32) - freq
        symbols = np.repeat(np.tile(np.arange(SYMBOLS, dtype=np.uint8), len(freq)), freq.reshape(-1))
        rows = np.repeat(np.arange(len(freq)), _TOTAL)
        slots = np.tile(np.arange(_TOTAL, dtype=np.uint32), len(freq))
        self.contexts: Final = len(freq)
        self._freq: Final = freq.astype(np.uint64)
        self._starts: Final = starts.astype(np.uint64)
        self._symbols: Final = symbols
        self._factor: Final = freq[rows, symbols].astype(np.uint16)
        self._bias: Final = (slots - starts[rows, symbols]).astype(np.uint16)

    def encode(self, symbols: Bytes, contexts: Bytes) -> bytes:
        """Return the bytes of some symbols, of which each has a context below `contexts`."""
        lanes = self.lanes(len(symbols))
        states = np.full(lanes, _LOW, np.uint64)
        freq, starts = self._freq[contexts, symbols], self._starts[contexts, symbols]
        words: list[Words] = []
        for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
            f, c = freq[start : start + lanes], starts[start : start + lanes]
            some = states[: len(f)]
            full = some >= f << np.uint64(20)
            words.append(some[full].astype(np.uint16))
            some[full] >>= np.uint64(16)
            some[:] = (some // f << np.uint64(_BITS)) + some % f + c
        head = states.astype("<u4").tobytes()
        return head + b"".join(part.astype("<u2").tobytes() for part in reversed(words))

    def decode(self, data: bytes, contexts: Bytes) -> Bytes:
        """Return as many symbols as there are contexts.

        Raises:
            DeltaError: too few or too many bytes.
        """
        count = len(contexts)
        lanes = self.lanes(count)
        if len(data) < 4 * lanes or len(data) % 2:
            raise DeltaError("delta: a block's coded bytes are cut off")
        states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
        words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint32)
        slots = contexts.astype(np.uint32) << np.uint32(_BITS)
        at = 0
        mask, bits, half = np.uint32(_TOTAL - 1), np.uint32(_BITS), np.uint32(16)
        for start in range(0, count, lanes):
            slot = slots[start : start + lanes]
            some = states[: len(slot)]
            slot |= some & mask
            some >>= bits
            some *= self._factor[slot]
            some += self._bias[slot]
            low = np.flatnonzero(some < _LOW)
            taken = words[at : at + len(low)]
            if len(taken) != len(low):
                raise DeltaError("delta: a block's coded bytes are cut off")
            some[low] = some[low] << half | taken
            at += len(low)
        if at != len(words) or (states != _LOW).any():
            raise DeltaError("delta: a block's coded bytes do not come out even")
        return np.asarray(self._symbols[slots], np.uint8)

    def lanes(self, symbols: int) -> int:
        """Return how many lanes code so many symbols."""
        return max(1, symbols // self._per_lane)
