"""Uploading bundles, releasing them, and the keys that sign."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, head, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from fleet.ids import Digest
from server.api.deps import ADMIN, VIEWER, ServicesDep, scoped
from server.db.tables import BundleRow, Release
from server.errors import NotFoundError
from server.services.container import Services
from server.services.roles import Principal, Role
from server.services.scopes import Scope
from server.services.signing_roles import RoleInfo

AnyRequest = Request[Principal, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]
_READ = scoped(Role.VIEWER, Scope.RELEASES_READ, narrows=True)
#: A blob is of no model yet: the limits are kept to when it is released.
_PUBLISH = scoped(Role.RELEASER, Scope.RELEASES_PUBLISH, narrows=True)


class BlobOut(msgspec.Struct, frozen=True, kw_only=True):
    """A stored blob."""

    digest: str
    size: int


class ReleaseIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new release: digests of uploaded bundles' manifests; version "" takes the release counter."""

    bundles: list[str]
    version: str = ""


class BundleOut(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle of a release; `description` is its `kedge/bundle.json`."""

    digest: str
    model: str
    target: str
    precision: str
    device_bytes: int
    description: dict[str, object]


class ReleaseOut(msgspec.Struct, frozen=True, kw_only=True):
    """A release."""

    id: int
    model: str
    version: str
    counter: int
    created_by: str
    created_at: float
    signed_at: float | None
    bundles: list[BundleOut]


def _bundle(row: BundleRow) -> BundleOut:
    return BundleOut(**{name: getattr(row, name) for name in BundleOut.__struct_fields__})


def _release(services: Services, row: Release) -> ReleaseOut:
    told = {name: getattr(row, name) for name in ReleaseOut.__struct_fields__ if name != "bundles"}
    return ReleaseOut(**told, bundles=[_bundle(x) for x in services.releases.bundles(row.id or 0)])


@head(
    "/api/v1/blobs/{digest:str}",
    opt=_PUBLISH,
    sync_to_thread=True,
    summary="Ask for a blob",
    tags=["releases"],
)
def has_blob(services: ServicesDep, digest: FromPath[str]) -> Response[None]:
    """Answer 200 when the blob is stored, 404 when it must be uploaded."""
    return Response(None, status_code=200 if services.releases.has_blob(Digest(digest)) else 404)


@put(
    "/api/v1/blobs/{digest:str}",
    opt=_PUBLISH,
    request_max_body_size=None,
    status_code=201,
    summary="Upload a blob",
    tags=["releases"],
)
async def put_blob(request: AnyRequest, services: ServicesDep, digest: FromPath[str]) -> BlobOut:
    """Store the body under its digest, which is checked while it streams in."""
    checked = Digest(digest)
    pieces = _pieces(request.stream(), asyncio.get_running_loop())
    return BlobOut(digest=digest, size=await asyncio.to_thread(services.releases.put_blob, checked, pieces))


def _pieces(stream: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """Yield the body's pieces in another thread, each as it arrives: a slow disk slows the sender down."""

    async def following() -> bytes | None:
        return await anext(stream, None)

    while (piece := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
        yield piece


@get("/api/v1/releases", opt=_READ, sync_to_thread=True, summary="List releases", tags=["releases"])
def releases(
    request: AnyRequest,
    services: ServicesDep,
    model: FromQuery[str] = "",
    offset: Offset = 0,
    limit: Limit = 100,
) -> list[ReleaseOut]:
    """Return releases, the newest first, of one model or of all."""
    within = request.user.within(Scope.RELEASES_READ)
    return [_release(services, row) for row in services.releases.page(model, offset, limit, within)]


@get(
    "/api/v1/releases/{release_id:int}",
    opt=_READ,
    sync_to_thread=True,
    summary="Show a release",
    tags=["releases"],
)
def release(request: AnyRequest, services: ServicesDep, release_id: FromPath[int]) -> ReleaseOut:
    """Return one release with its bundles."""
    row = services.releases.get(release_id)
    if not request.user.covers(Scope.RELEASES_READ, model=row.model):
        raise NotFoundError(f"release {release_id}: expected an existing one")
    return _release(services, row)


@post("/api/v1/releases", opt=_PUBLISH, sync_to_thread=True, summary="Publish a release", tags=["releases"])
def publish(request: AnyRequest, services: ServicesDep, data: JSONBody[ReleaseIn]) -> ReleaseOut:
    """Check uploaded bundles, make a release of them, and sign it; the same again changes nothing."""
    row = services.releases.publish(request.user, data.version, [Digest(x) for x in data.bundles])
    services.wake_publisher()
    return _release(services, row)


@get("/api/v1/keys", opt=VIEWER, sync_to_thread=True, summary="Show the signing keys", tags=["trust"])
def keys(services: ServicesDep) -> list[RoleInfo]:
    """Return each role's public key ids, threshold, version and expiry."""
    return [msgspec.structs.replace(info, key_file="") for info in services.signing.describe()]


@post(
    "/api/v1/keys/{role_name:str}/rotate",
    opt=ADMIN,
    sync_to_thread=True,
    summary="Replace a signing key",
    tags=["trust"],
)
def rotate(request: AnyRequest, services: ServicesDep, role_name: FromPath[str]) -> list[RoleInfo]:
    """Replace a role's key: what a thief of the old one signs counts no more."""
    services.signing.rotate(role_name)
    with services.database.write() as session:
        services.audit.record(session, request.user, "key.rotate", f"key {role_name}")
        if role_name == "director":
            services.assignments.sign_all(session)
    services.wake_publisher()
    return [msgspec.structs.replace(info, key_file="") for info in services.signing.describe()]


ROUTES = Router(path="/", route_handlers=[has_blob, put_blob, releases, release, publish, keys, rotate])
