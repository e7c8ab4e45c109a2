"""What a site gateway serves to its neighbours. Pure: assignments in, a list of parcels out.

A parcel is what one chunk index lists: a bundle, or the patch that makes a bundle from another. What every
neighbour can patch is served as a patch alone; the whole bundle follows when somebody asks for it after all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle, Assignment


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """Something to serve.

    Attributes:
        bundle: the bundle, None for a patch.
        rate: bytes a second at most, as the first assignment that names it allows; 0 for all of the line.
    """

    index: str
    index_size: int
    bundle: AssignedBundle | None = None
    rate: int = 0


class SitePlan:
    """Follows the neighbours' assignments and what they ask for."""

    def __init__(self) -> None:
        """Begin with no neighbours."""
        self._assigned: Final[dict[str, Assignment]] = {}
        self._asked: Final[set[str]] = set()

    def assign(self, assignment: Assignment) -> bool:
        """Take a verified assignment of a neighbour; return whether it is a newer one than is known."""
        known = self._assigned.get(assignment.device)
        if known is not None and known.version >= assignment.version:
            return False
        self._assigned[assignment.device] = assignment
        return True

    def leave(self, device: str) -> None:
        """Forget a neighbour whose assignment was cleared."""
        self._assigned.pop(device, None)

    def ask(self, digest: Digest) -> None:
        """Note that a neighbour misses something: of a bundle, then, the whole is served too."""
        for assignment in self._assigned.values():
            for bundle in assignment.targets:
                if digest in (bundle.digest, bundle.index):
                    self._asked.add(bundle.index)

    def wanted(self) -> list[Parcel]:
        """Return what to serve, each once; what was assigned first comes first."""
        found: dict[str, Parcel] = {}
        for assignment in self._assigned.values():
            rate = assignment.delivery.rate
            for bundle in assignment.targets:
                offer = assignment.deltas.get(bundle.model)
                if offer is not None:
                    patch = Parcel(index=offer.index, index_size=offer.index_size, rate=rate)
                    found.setdefault(offer.index, patch)
                if offer is None or bundle.index in self._asked:
                    whole = Parcel(index=bundle.index, index_size=bundle.index_size, bundle=bundle, rate=rate)
                    found.setdefault(bundle.index, whole)
        self._asked.intersection_update(found)
        return list(found.values())


def fitting(chunks: Mapping[str, Mapping[Digest, int]], budget: int) -> list[str]:
    """Return the parcels that a budget has room for, the first ones first.

    Args:
        chunks: by parcel's index, its chunks and their sizes; what two share counts once.
        budget: bytes.
    """
    kept: list[str] = []
    held: dict[Digest, int] = {}
    for index, sizes in chunks.items():
        more = {digest: size for digest, size in sizes.items() if digest not in held}
        if sum(held.values()) + sum(more.values()) <= budget:
            held |= more
            kept.append(index)
    return kept
