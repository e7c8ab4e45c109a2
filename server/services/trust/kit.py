"""What is signed for offline kits: a timestamp that holds longer, and which metadata files a kit carries."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from tuf.api.metadata import MetaFile, Snapshot, Timestamp

from fleet.trust import policy
from fleet.trust.metadata_set import ROOT, SNAPSHOT
from fleet.trust.workflow import filename


def make_timestamp(
    snapshot: Snapshot, data: bytes, *, version: int, now: datetime, expires: datetime
) -> Timestamp:
    """Return a timestamp that counts only in an offline kit.

    Args:
        snapshot: what it names.
        data: the snapshot's bytes.
        version: higher than that of any timestamp before.
        now: when it is signed.
        expires: until when the kit holds.
    """
    return Timestamp(
        version=version,
        expires=expires,
        snapshot_meta=MetaFile.from_data(snapshot.version, data, ["sha256"]),
        unrecognized_fields=policy.stamp(now, kit=True),
    )


def needed(files: Mapping[str, bytes], snapshot: Snapshot) -> dict[str, bytes]:
    """Return the files that a client of this snapshot may ask for, but the timestamp: which, it decides."""
    named = {filename(SNAPSHOT, snapshot.version)}
    named |= {filename(name.removesuffix(".json"), meta.version) for name, meta in snapshot.meta.items()}
    return {name: data for name, data in files.items() if name in named or name.endswith(f".{ROOT}.json")}
