"""Offline kits: what goes onto a stick, and what comes back on it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from fleet.ids import Digest
from fleet.wire import kit
from server.api.deps import OPERATOR, ServicesDep
from server.services.kits import Collected, KitPlan, KitSelection
from server.services.people.roles import Principal

AnyRequest = Request[Principal, Any, Any]
#: Bytes of a blob in one answer.
PIECE = 4 * 1024 * 1024


class KitIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kit to be planned: for which devices, and for how many days it is to hold."""

    which: KitSelection = msgspec.field(default_factory=KitSelection)
    days: int = 14


@post("/api/v1/kits", opt=OPERATOR, sync_to_thread=True, summary="Plan an offline kit", tags=["kits"])
def plan(request: AnyRequest, services: ServicesDep, data: JSONBody[KitIn]) -> KitPlan:
    """Return all that goes into a kit but the bytes of the blobs; files are in base64."""
    planned = services.kits.plan(request.user, data.which, data.days)
    services.wake_publisher()
    return planned


@get(
    "/api/v1/kits/blobs/{digest:str}",
    opt=OPERATOR,
    sync_to_thread=True,
    summary="Read a blob for an offline kit",
    tags=["kits"],
    media_type="application/octet-stream",
)
def blob(
    services: ServicesDep,
    digest: FromPath[str],
    start: Annotated[FromQuery[int], QueryParameter(ge=0)] = 0,
) -> Response[bytes]:
    """Return at most 4 MiB of a blob, from a byte on; nothing where it has ended."""
    piece = services.kits.blob(Digest(digest), start, PIECE)
    return Response(piece, media_type="application/octet-stream")


@post(
    "/api/v1/kits/reports",
    opt=OPERATOR,
    request_max_body_size=kit.REPORTS_LIMIT,
    summary="Take in reports from an offline kit",
    tags=["kits"],
)
async def collect(request: AnyRequest, services: ServicesDep) -> Collected:
    """Take in one file of reports that a device has signed (the body); the same again changes nothing."""
    body = await request.body()
    return await asyncio.to_thread(services.kits.collect, request.user, body)


ROUTES = Router(path="/", route_handlers=[plan, blob, collect])
