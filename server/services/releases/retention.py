"""What the broker retains: the most wanted parcels that fit into the budget. The choice itself is pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

#: What a broker keeps beside the bytes of a retained message, about: its topic, twice, and its records.
_OVERHEAD: Final = 400

_Key = TypeVar("_Key")


def fit(parcels: Mapping[_Key, Mapping[str, int]], budget: int | None) -> list[_Key]:
    """Return the parcels to retain.

    A parcel is retained whole or not at all, for a device asks one place for all of it. One that does not fit
    does not keep a smaller one behind it out.

    Args:
        parcels: each one's chunks with their bytes, the most wanted first; shared chunks count once.
        budget: bytes on the broker; None for no limit.
    """
    kept: list[_Key] = []
    chunks: set[str] = set()
    used = 0
    for key, sizes in parcels.items():
        more = sum(size + _OVERHEAD for chunk, size in sizes.items() if chunk not in chunks)
        if budget is None or used + more <= budget:
            kept.append(key)
            chunks.update(sizes)
            used += more
    return kept
