"""Chunks cut by content: they join back, keep their bounds, and an edit in the middle moves few of them."""

from __future__ import annotations

import hashlib
import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.bundle.cutting import CHUNK_MAX, CHUNK_MIN, cut, cut_pieces
from fleet.ids import Digest

BLOB = random.Random(7).randbytes(3_000_000)
CUT = cut(BLOB)


def test_the_same_bytes_are_cut_the_same_way_for_ever() -> None:
    """Frozen: another cut would make every device in the field download again what it has."""
    assert len(CUT) == 19
    ends = list(itertools.accumulate(len(part) for part in CUT))
    assert hashlib.sha256(repr(ends).encode()).hexdigest()[:16] == "e49bacaa5b112c94"


def test_chunks_join_back_and_keep_their_bounds() -> None:
    assert b"".join(CUT) == BLOB
    assert all(CHUNK_MIN <= len(part) <= CHUNK_MAX for part in CUT[:-1])
    assert 0 < len(CUT[-1]) <= CHUNK_MAX


@given(st.integers(0, 600_000), st.sampled_from([b"", b"\x00", b"ab", bytes(range(256))]))
@settings(max_examples=25)
def test_any_length_of_any_pattern_joins_back(size: int, pattern: bytes) -> None:
    blob = (pattern * (size // max(1, len(pattern)) + 1))[:size]
    parts = cut(blob)
    assert b"".join(parts) == blob
    assert all(CHUNK_MIN <= len(part) <= CHUNK_MAX for part in parts[:-1])
    assert len(parts[-1]) <= CHUNK_MAX


@given(st.lists(st.integers(1, 900_000), max_size=12))
@settings(max_examples=10, deadline=None)
def test_how_a_blob_comes_in_changes_no_cut(sizes: list[int]) -> None:
    """A disk gives a megabyte at a time, a network whatever it likes."""
    starts = [0, *itertools.accumulate(sizes), len(BLOB)]
    pieces = (BLOB[a:b] for a, b in itertools.pairwise(sorted(min(x, len(BLOB)) for x in starts)))
    assert list(cut_pieces(pieces)) == CUT


@given(st.integers(0, len(BLOB)), st.binary(min_size=1, max_size=2000))
@settings(max_examples=10, deadline=None)
def test_an_insertion_anywhere_changes_few_chunks(place: int, inserted: bytes) -> None:
    known = {Digest.of(part) for part in CUT}
    after = cut(BLOB[:place] + inserted + BLOB[place:])
    assert sum(Digest.of(part) not in known for part in after) <= 6


def test_changed_bytes_at_the_end_change_the_end_only() -> None:
    """A network whose last layer was trained again."""
    layer = random.Random(8).randbytes(100_000)
    known = {Digest.of(part) for part in CUT}
    after = cut(BLOB[: -len(layer)] + layer)
    assert sum(Digest.of(part) not in known for part in after) <= 3
