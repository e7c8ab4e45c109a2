"""Bundles as assignments name them, with nothing behind their digests."""

from __future__ import annotations

from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle


def named_bundle(
    version: str = "1", model: str = "digits", *, target: str = "laptop-x86", counter: int = 1
) -> AssignedBundle:
    """Return a bundle of this version; its digests follow from its name."""
    return AssignedBundle(
        model=model,
        version=version,
        target=target,
        digest=str(Digest.of(f"{model} {version}".encode())),
        manifest_size=8,
        index=str(Digest.of(f"index of {model} {version}".encode())),
        index_size=5,
        release_counter=counter,
    )
