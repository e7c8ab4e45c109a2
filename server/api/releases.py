"""Uploading bundles, releasing them, and taking releases back."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from fleet.ids import Digest
from server.api.deps import ServicesDep, scoped
from server.db.tables import BundleRow, Release
from server.errors import NotFoundError
from server.services.container import Services
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Scope

AnyRequest = Request[Principal, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]
_READ = scoped(Role.VIEWER, Scope.RELEASES_READ, narrows=True)
_PUBLISH = scoped(Role.RELEASER, Scope.RELEASES_PUBLISH, narrows=True)


class ReleaseIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new release.

    Attributes:
        bundles: digests of uploaded bundles' manifests.
        version: "" takes the release counter.
        project: who is going to sign it; "" for the server, which does so at once.
    """

    bundles: list[str]
    version: str = ""
    project: str = ""


class WithdrawIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a release is withdrawn."""

    reason: str = ""


class BundleOut(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle of a release; `description` is its `kedge/bundle.json`."""

    digest: str
    model: str
    target: str
    precision: str
    device_bytes: int
    description: dict[str, object]


class ReleaseOut(msgspec.Struct, frozen=True, kw_only=True):
    """A release.

    Attributes:
        project: who signs it.
        signed_at: None while it waits for signatures.
        withdrawn_at, withdrawn_by: since when no device is to install it, and who said so.
    """

    id: int
    model: str
    version: str
    counter: int
    created_by: str
    created_at: float
    project: str
    signed_at: float | None
    withdrawn_at: float | None
    withdrawn_by: str
    bundles: list[BundleOut]


def _bundle(row: BundleRow) -> BundleOut:
    return BundleOut(**{name: getattr(row, name) for name in BundleOut.__struct_fields__})


def _release(services: Services, row: Release) -> ReleaseOut:
    told = {name: getattr(row, name) for name in ReleaseOut.__struct_fields__ if name != "bundles"}
    return ReleaseOut(**told, bundles=[_bundle(x) for x in services.releases.bundles(row.id or 0)])


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
    """Check uploaded bundles and make a release of them; the same again changes nothing.

    The server signs it at once, unless a project's own keys do: then it waits for them.
    """
    digests = [Digest(x) for x in data.bundles]
    row = services.releases.publish(request.user, data.version, digests, data.project)
    services.wake_publisher()
    return _release(services, row)


@post(
    "/api/v1/releases/{release_id:int}/withdraw",
    opt=_PUBLISH,
    sync_to_thread=True,
    summary="Withdraw a release",
    tags=["releases"],
)
def withdraw(
    request: AnyRequest, services: ServicesDep, release_id: FromPath[int], data: JSONBody[WithdrawIn]
) -> ReleaseOut:
    """Have no device install a release any more, and abort its rollouts; devices that run it go on."""
    row = services.withdrawals.withdraw(request.user, release_id, data.reason)
    services.wake_publisher()
    return _release(services, services.releases.get(row.id or 0))


ROUTES = Router(path="/", route_handlers=[releases, release, publish, withdraw])
