"""The shorter way to a bundle that an assignment may name, for a device that has another one."""

from __future__ import annotations

import msgspec


class DeltaOffer(msgspec.Struct, frozen=True, kw_only=True):
    """Which bundle the device must have, and the patch that makes the assigned one's files from it.

    Attributes:
        base: digest of the bundle that the device must have.
        index: digest of the chunk index of the patch (`fleet.delta.patch`).
        index_size: bytes of that index.
    """

    base: str
    index: str
    index_size: int
