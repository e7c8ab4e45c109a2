"""Releases: which version is compiled for which target, how accurate, how large, how fast."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlmodel import Session, col, select

from fleet.bundle.description import Accuracy
from server.db.tables import BundleRow, DeviceModel, EventRow, Release, ReleaseBundle

#: So many of the newest events are looked through for measured latency.
_EVENTS: Final = 20_000


class _Described(msgspec.Struct, frozen=True):
    """The part of a bundle's description that the matrix shows."""

    accuracy: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A release's bundle for one target.

    Attributes:
        accuracy: as the compiler measured it, or None.
        p95_ms: the median over devices of the 95th percentile that golden checks measured, or None.
        devices: how many run it now.
    """

    bundle: BundleRow
    accuracy: Accuracy | None
    p95_ms: float | None
    devices: int


@dataclass(frozen=True, kw_only=True)
class ReleaseLine:
    """One release with its variants by target."""

    row: Release
    variants: dict[str, Variant]

    @property
    def devices(self) -> int:
        """How many devices run any of its bundles."""
        return sum(variant.devices for variant in self.variants.values())


@dataclass(frozen=True, kw_only=True)
class ModelMatrix:
    """A model's releases, the newest first, and the targets that any of them is compiled for."""

    model: str
    targets: list[str]
    releases: list[ReleaseLine]


def matrices(session: Session) -> list[ModelMatrix]:
    """Return every model's releases against targets."""
    running = Counter(session.exec(select(DeviceModel.active).where(DeviceModel.active != "")))
    measured = _measured(session)
    variants: dict[int, dict[str, Variant]] = defaultdict(dict)
    pairs = select(ReleaseBundle, BundleRow).join(
        BundleRow, col(BundleRow.digest) == ReleaseBundle.bundle_digest
    )
    for link, bundle in session.exec(pairs):
        variants[link.release_id][link.target] = Variant(
            bundle=bundle,
            accuracy=msgspec.convert(bundle.description, _Described).accuracy,
            p95_ms=measured.get(bundle.digest),
            devices=running[bundle.digest],
        )
    grouped: dict[str, list[ReleaseLine]] = defaultdict(list)
    for row in session.exec(select(Release).order_by(Release.model, col(Release.counter).desc())):
        grouped[row.model].append(ReleaseLine(row=row, variants=variants[row.id or 0]))
    return [
        ModelMatrix(
            model=model,
            targets=sorted({target for line in lines for target in line.variants}),
            releases=lines,
        )
        for model, lines in grouped.items()
    ]


def _measured(session: Session) -> dict[str, float]:
    """Return the median p95 of golden checks by bundle; the check's figures come with the step after it."""
    found: dict[str, list[float]] = defaultdict(list)
    query = (
        select(EventRow.bundle, EventRow.measured)
        .where(EventRow.reason == "")
        .order_by(col(EventRow.received_at).desc())
        .limit(_EVENTS)
    )
    for bundle, measured in session.exec(query):
        if "max_abs_error" in measured and "p95_ms" in measured:
            found[bundle].append(measured["p95_ms"])
    return {bundle: sorted(values)[len(values) // 2] for bundle, values in found.items()}
