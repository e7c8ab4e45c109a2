"""What the broker retains whole: the indexes of the bundles whose chunks are all on their topics.

It is a retained message of its own, and a hint: it is not signed, for whoever could forge it could as well
clear the chunks. A device that is misled by it asks elsewhere, or later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from fleet.errors import WireError
from fleet.ids import Digest

#: So many bytes tell two bundles apart.
_PREFIX: Final = 16
#: No catalogue is larger: 8,000 bundles.
CATALOGUE_LIMIT: Final = 128 * 1024 + 16


class Catalogue:
    """The indexes that a catalogue names."""

    def __init__(self, prefixes: frozenset[bytes]) -> None:
        """Take what was decoded."""
        self._prefixes: Final = prefixes

    def __contains__(self, index: Digest) -> bool:
        """Return whether the index is named."""
        return _prefix(index) in self._prefixes


def encode(indexes: Iterable[Digest]) -> bytes:
    """Return the catalogue's bytes; of too many, the first are named."""
    most = CATALOGUE_LIMIT // _PREFIX - 1
    return msgspec.msgpack.encode(b"".join(sorted([_prefix(index) for index in indexes][:most])))


def decode(data: bytes) -> Catalogue:
    """Read a catalogue.

    Raises:
        WireError: malformed or too long.
    """
    if len(data) > CATALOGUE_LIMIT:
        raise WireError(f"catalogue: expected at most {CATALOGUE_LIMIT} bytes, got {len(data)}")
    try:
        packed = msgspec.msgpack.decode(data, type=bytes)
    except msgspec.DecodeError as error:
        raise WireError(f"catalogue: {error}") from error
    if len(packed) % _PREFIX:
        raise WireError(f"catalogue: expected entries of {_PREFIX} bytes, got {len(packed)} bytes")
    return Catalogue(frozenset(packed[i : i + _PREFIX] for i in range(0, len(packed), _PREFIX)))


def _prefix(index: Digest) -> bytes:
    return bytes.fromhex(index.hex)[:_PREFIX]
