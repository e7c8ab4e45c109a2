"""Pools of cloud accelerators, the policy about them, and how offload does."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, patch, post, put
from litestar.params import FromPath, JSONBody, QueryParameter

from fleet.offload.routing import DATA_CLASSES, Pool, PoolState
from server.api.deps import ADMIN, VIEWER, ServicesDep
from server.services.offload.pools import OffloadPolicy, PoolSpec
from server.services.offload.views import OffloadView
from server.services.people.roles import Principal

AnyRequest = Request[Principal, Any, Any]
Window = Annotated[float, QueryParameter(ge=60, le=30 * 86400)]


class PoolIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new pool; see `fleet.offload.routing.Pool` for the fields."""

    name: str
    url: str
    region: str
    models: dict[str, str]
    data_classes: tuple[str, ...] = DATA_CLASSES
    price_per_hour: float = 0.0
    watts: float = 0.0
    capacity: int = 1
    carbon: float = 0.0
    state: PoolState = PoolState.ACTIVE


class PoolChangeIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes of a pool; what is left out stays."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    region: str | msgspec.UnsetType = msgspec.UNSET
    models: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    data_classes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    price_per_hour: float | msgspec.UnsetType = msgspec.UNSET
    watts: float | msgspec.UnsetType = msgspec.UNSET
    capacity: int | msgspec.UnsetType = msgspec.UNSET
    carbon: float | msgspec.UnsetType = msgspec.UNSET
    state: PoolState | msgspec.UnsetType = msgspec.UNSET


class PoolOut(PoolIn, frozen=True, kw_only=True):
    """A pool."""


def _out(spec: PoolSpec) -> PoolOut:
    return PoolOut(url=spec.url, **{x: getattr(spec.pool, x) for x in spec.pool.__struct_fields__})


def _spec(values: dict[str, Any]) -> PoolSpec:
    return PoolSpec(url=values.pop("url"), pool=msgspec.convert(values, Pool))


@get("/api/v1/pools", opt=VIEWER, sync_to_thread=True, summary="List pools", tags=["offload"])
def pools(services: ServicesDep) -> list[PoolOut]:
    """Return every pool, by name."""
    return [_out(spec) for spec in services.pools.all()]


@post("/api/v1/pools", opt=ADMIN, sync_to_thread=True, summary="Add a pool", tags=["offload"])
def add_pool(request: AnyRequest, services: ServicesDep, data: JSONBody[PoolIn]) -> PoolOut:
    """Add a pool; hard requests may go there from now on."""
    return _out(services.pools.add(request.user, _spec(msgspec.to_builtins(data))))


@patch("/api/v1/pools/{name:str}", opt=ADMIN, sync_to_thread=True, summary="Change a pool", tags=["offload"])
def change_pool(
    request: AnyRequest, services: ServicesDep, name: FromPath[str], data: JSONBody[PoolChangeIn]
) -> PoolOut:
    """Change some values; state "draining" lets it finish what it works on, and takes nothing new."""
    before = msgspec.to_builtins(_out(services.pools.get(name)))
    return _out(services.pools.change(request.user, name, _spec({**before, **msgspec.to_builtins(data)})))


@delete("/api/v1/pools/{name:str}", opt=ADMIN, sync_to_thread=True, summary="Remove a pool", tags=["offload"])
def remove_pool(request: AnyRequest, services: ServicesDep, name: FromPath[str]) -> None:
    """Forget a pool; what it answered stays on record."""
    services.pools.remove(request.user, name)


@get("/api/v1/offload", opt=VIEWER, sync_to_thread=True, summary="Say how offload does", tags=["offload"])
def overview(services: ServicesDep, window: Window = 86400.0) -> OffloadView:
    """Return shares, disagreement, waiting, spend and pools over the last `window` seconds."""
    return services.offload_views.overview(window)


@put("/api/v1/offload/policy", opt=ADMIN, sync_to_thread=True, summary="Set the policy", tags=["offload"])
def set_policy(request: AnyRequest, services: ServicesDep, data: JSONBody[OffloadPolicy]) -> OffloadPolicy:
    """Set allowed regions, the daily budget, and what carbon and waiting cost."""
    return services.pools.set_policy(request.user, data)


ROUTES = Router(path="/", route_handlers=[pools, add_pool, change_pool, remove_pool, overview, set_policy])
