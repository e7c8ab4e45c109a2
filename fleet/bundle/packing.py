"""A chunk as it travels over a broker: packed by zstd (RFC 8878) where that is shorter.

A message as long as the chunk is the chunk; a shorter one is a frame that makes it. The chunk's name is the
digest of its own bytes either way, so what is cut, shared and verified is the same however it travelled.
"""

from __future__ import annotations

from typing import Final

import zstandard

from fleet.errors import BundleError

#: What this much of a chunk, or more, is left of it is not worth unpacking.
_WORTH: Final = 0.97
#: Fast: weights hardly get shorter at any other level.
_LEVEL: Final = 3
#: A chunk's window; a frame that asks for more memory is none of ours.
_WINDOW: Final = 1 << 21


def pack(chunk: bytes) -> bytes:
    """Return a chunk as it is to be sent."""
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(chunk)
    return packed if len(packed) < _WORTH * len(chunk) else chunk


def unpack(sent: bytes, size: int) -> bytes:
    """Return the chunk that was sent; it is still to be verified.

    Args:
        sent: what came, from anybody.
        size: of the chunk; no more memory than that is taken for it.

    Raises:
        BundleError: it makes no chunk of that size.
    """
    if len(sent) >= size:
        return sent
    try:
        # What the frame claims is what the library sets aside, whatever limit it is given.
        claimed = zstandard.frame_content_size(sent)
        if claimed != size:
            raise BundleError(f"chunk: expected {size} bytes, packed or not, got {claimed}")
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompress(sent, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BundleError(f"chunk: {error}") from error
