"""Offload: how much goes to the cloud, what it is worth there, and what waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlmodel import Session, col, select

from server.console.views import reports
from server.db.tables import Device

DAY: Final = 86400.0
_MOST: Final = 12


@dataclass(frozen=True, kw_only=True)
class ModelShare:
    """One model's offload."""

    model: str
    figures: reports.Figures


@dataclass(frozen=True, kw_only=True)
class OffloadPage:
    """The last day's offload.

    Attributes:
        share: requests and the share offloaded, per slice.
        waiting: devices whose outbox holds something, the fullest first.
    """

    total: reports.Figures
    share: reports.Series
    volume: reports.Series
    models: list[ModelShare]
    waiting: list[Device]
    truncated: bool


def page(session: Session, now: float) -> OffloadPage:
    """Return the last day's offload."""
    fleet = reports.fleet(session, now, DAY)
    starts = reports.slices(now, DAY)
    shares = zip(
        starts, fleet.shares("offloaded"), fleet.shares("cloud_disagreed", "answered_by_cloud"), strict=True
    )
    volume = zip(starts, fleet.values("offloaded"), fleet.values("answered_by_cloud"), strict=True)
    waiting = (
        select(Device).where(Device.outbox_bytes > 0).order_by(col(Device.outbox_bytes).desc()).limit(_MOST)
    )
    return OffloadPage(
        total=fleet.total,
        share=reports.Series(
            names=["offloaded, % of requests", "cloud disagreed, % of its answers"],
            rows=[[at, _points(share), _points(disagreed)] for at, share, disagreed in shares],
        ),
        volume=reports.Series(
            names=["offloaded", "answered by the cloud"], rows=[list(row) for row in volume]
        ),
        models=[ModelShare(model=model, figures=figures) for model, figures in sorted(fleet.models.items())],
        waiting=list(session.exec(waiting)),
        truncated=fleet.truncated,
    )


def _points(share: float | None) -> float | None:
    return None if share is None else share * 100
