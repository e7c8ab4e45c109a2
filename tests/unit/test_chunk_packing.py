"""Chunks as they travel: the same bytes come out, and nothing made up takes more memory than a chunk."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fleet.bundle.packing import pack, unpack
from fleet.errors import BundleError


@given(
    st.binary(max_size=300)
    | st.builds(lambda piece, many: piece * many, st.binary(max_size=9), st.integers(0, 99))
)
def test_what_was_packed_comes_out(chunk: bytes) -> None:
    sent = pack(chunk)
    assert len(sent) <= len(chunk)
    assert unpack(sent, len(chunk)) == chunk


def test_weights_get_shorter_and_noise_stays_as_it_is() -> None:
    rng = random.Random(1)
    noise = rng.randbytes(200_000)
    weights = bytes(round(rng.gauss(128, 20)) & 255 for _ in range(200_000))
    assert pack(noise) is noise
    assert len(pack(weights)) < 0.9 * len(weights)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_make_a_chunk_of_that_size_or_none(sent: bytes, size: int) -> None:
    try:
        made = unpack(sent, size)
    except BundleError:
        return
    assert len(made) == max(size, len(sent))


BOMB = zstandard.ZstdCompressor().compress(bytes(50_000_000))


@pytest.mark.parametrize(
    "sent",
    [
        BOMB,
        BOMB[:20],
        pack(bytes(100_000)) + b"x",
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000)),
    ],
    ids=["a bomb", "a torn bomb", "something behind", "no size"],
)
def test_what_makes_something_else_is_refused_before_it_is_opened(sent: bytes) -> None:
    with pytest.raises(BundleError, match="chunk: "):
        unpack(sent, 100_000)


def test_a_frame_that_asks_for_much_memory_is_refused() -> None:
    """Its window is 128 MiB, for a chunk of 1,000 bytes: the library would set that aside."""
    options = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=1)
    compressor = zstandard.ZstdCompressor(compression_params=options).compressobj()
    sent = compressor.compress(bytes(3_000_000)) + compressor.flush()
    with pytest.raises(BundleError, match="chunk: "):
        unpack(sent, 3_000_000)
