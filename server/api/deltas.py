"""The deltas between bundles: what each saves, and why there is none."""

from __future__ import annotations

import msgspec
from litestar import Router, get

from server.api.deps import VIEWER, ServicesDep
from server.api.releases import Limit, Offset
from server.db.delta_tables import DeltaRow


class DeltaOut(msgspec.Struct, frozen=True, kw_only=True):
    """The delta between two bundles; `instead` are the bytes that a device would fetch without it."""

    base: str
    bundle: str
    state: str
    detail: str
    size: int
    instead: int
    requested_at: float
    made_at: float | None
    used_at: float


def _delta(row: DeltaRow) -> DeltaOut:
    return DeltaOut(**{name: getattr(row, name) for name in DeltaOut.__struct_fields__})


@get("/api/v1/deltas", opt=VIEWER, sync_to_thread=True, summary="List deltas", tags=["releases"])
def deltas(services: ServicesDep, offset: Offset = 0, limit: Limit = 100) -> list[DeltaOut]:
    """Return the deltas that were asked for, the newest first."""
    return [_delta(row) for row in services.deltas.page(offset, limit)]


ROUTES = Router(path="/", route_handlers=[deltas])
