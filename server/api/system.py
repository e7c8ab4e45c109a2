"""How the server is."""

from __future__ import annotations

import msgspec
from litestar import Response, Router, get
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.deps import PUBLIC, ServicesDep, scoped
from server.services.people.roles import Role
from server.services.people.scopes import Scope

_METRICS = scoped(Role.VIEWER, Scope.METRICS_READ)


class PartOut(msgspec.Struct, frozen=True, kw_only=True):
    """How one part of the server is."""

    name: str
    ok: bool


class HealthOut(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server works."""

    ok: bool
    parts: list[PartOut]


class StatusPartOut(msgspec.Struct, frozen=True, kw_only=True):
    """How one part of the server is, in words."""

    name: str
    ok: bool
    detail: str


class StatusOut(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is, and what it counted since it started."""

    ok: bool
    parts: list[StatusPartOut]
    counts: dict[str, int]


@get(
    "/api/v1/health", opt=PUBLIC, sync_to_thread=True, summary="Say whether the server works", tags=["system"]
)
def health(services: ServicesDep) -> Response[HealthOut]:
    """Return 200 when every part works, 503 otherwise; without details, for load balancers."""
    parts = services.health.parts()
    ok = all(part.ok for part in parts)
    body = HealthOut(ok=ok, parts=[PartOut(name=part.name, ok=part.ok) for part in parts])
    return Response(body, status_code=200 if ok else 503)


@get("/api/v1/status", opt=_METRICS, sync_to_thread=True, summary="Say how every part is", tags=["system"])
def status(services: ServicesDep) -> StatusOut:
    """Return parts and workers with what is wrong, and counts since the start."""
    parts = [StatusPartOut(name=x.name, ok=x.ok, detail=x.detail) for x in services.health.parts()]
    return StatusOut(ok=all(x.ok for x in parts), parts=parts, counts=services.health.counts())


@get("/metrics", opt=_METRICS, sync_to_thread=True, summary="Metrics for Prometheus", tags=["system"])
def metrics(services: ServicesDep) -> Response[bytes]:
    """Return Prometheus' text format."""
    return Response(
        services.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST}, media_type="text/plain"
    )


ROUTES = Router(path="/", route_handlers=[health, status, metrics])
