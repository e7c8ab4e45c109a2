"""Devices, claims, enrolment, and the trust metadata that devices start from."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from server.api.deps import OPERATOR, PUBLIC, VIEWER, ServicesDep, scoped
from server.db.tables import Action, Claim, Device, DeviceModel
from server.errors import NotFoundError
from server.services.devices.devices import DeviceFilter
from server.services.people.labels import parse_labels
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Scope

AnyRequest = Request[Principal, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]
_READ = scoped(Role.VIEWER, Scope.DEVICES_READ, narrows=True)
_WRITE = scoped(Role.OPERATOR, Scope.DEVICES_WRITE, narrows=True)
_CLAIM = scoped(Role.OPERATOR, Scope.CLAIMS_WRITE, narrows=True)


class ClaimIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new claim; `expires_in` in seconds; `approval`: a person lets in each device."""

    name: str = "claim"
    quota: int = 1
    expires_in: float = 24 * 3600.0
    target: str = ""
    labels: dict[str, str] = {}
    approval: bool = False


class ClaimOut(msgspec.Struct, frozen=True, kw_only=True):
    """A claim; `token` only in the answer that made it."""

    id: int
    name: str
    quota: int
    used: int
    target: str
    labels: dict[str, str]
    created_by: str
    created_at: float
    expires_at: float
    revoked_at: float | None
    approval: bool
    token: str | None = None


class ModelOut(msgspec.Struct, frozen=True, kw_only=True):
    """One model on a device: what runs, what ran, what shall run."""

    model: str
    active: str
    active_version: str
    previous: str
    desired: str
    state: str
    rollout: str
    release_counter: int
    updated_at: float


class DeviceOut(msgspec.Struct, frozen=True, kw_only=True):
    """A device."""

    id: str
    target: str
    labels: dict[str, str]
    online: bool
    enrolled_at: float
    last_seen_at: float | None
    revoked_at: float | None
    shut_out_at: float | None
    decommission_at: float | None
    decommissioned_at: float | None
    agent_version: str
    firmware: dict[str, str]
    assignment_version: int
    clock_untrusted: bool
    outbox_bytes: int
    gates: list[str]
    models: list[ModelOut]


class DevicePage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of devices, and how many match in all."""

    items: list[DeviceOut]
    total: int


class EventOut(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an update."""

    id: str
    rollout: str
    model: str
    bundle: str
    state: str
    reason: str
    detail: str
    measured: dict[str, float]
    time: float
    received_at: float


class RefusalOut(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a device refused because it did not verify."""

    device: str
    id: str
    what: str
    reason: str
    detail: str
    time: float
    received_at: float


class ActionOut(msgspec.Struct, frozen=True, kw_only=True):
    """A device's part in a rollout."""

    rollout: int
    group: int
    device: str
    status: str
    step: str
    bundle: str
    before: str
    reason: str
    detail: str
    measured: dict[str, float]
    assigned_at: float | None
    started_at: float | None
    finished_at: float | None


class LabelsIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device's labels, which replace those that it had."""

    labels: dict[str, str]


def _claim(row: Claim, token: str | None = None) -> ClaimOut:
    return ClaimOut(
        id=row.id or 0,
        name=row.name,
        quota=row.quota,
        used=row.used,
        target=row.target,
        labels=row.labels,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        approval=row.approval,
        token=token,
    )


def _model(row: DeviceModel) -> ModelOut:
    return ModelOut(**{name: getattr(row, name) for name in ModelOut.__struct_fields__})


def _device(row: Device, models: list[DeviceModel]) -> DeviceOut:
    told = {name: getattr(row, name) for name in DeviceOut.__struct_fields__ if name != "models"}
    return DeviceOut(**told, models=[_model(model) for model in models])


def action_out(row: Action) -> ActionOut:
    """Return what leaves the server of an action."""
    return ActionOut(
        rollout=row.rollout_id,
        group=row.group_index,
        device=row.device_id,
        status=row.status,
        step=row.step,
        bundle=row.bundle,
        before=row.before,
        reason=row.reason,
        detail=row.detail,
        measured=row.measured,
        assigned_at=row.assigned_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _labels(labels: list[str] | None) -> dict[str, str]:
    return parse_labels(labels or [])


@get(
    "/api/v1/trust/{name:str}",
    opt=PUBLIC,
    sync_to_thread=True,
    summary="Read a trust metadata file",
    tags=["trust"],
    security=[],
    media_type="application/json",
)
def trust(request: AnyRequest, services: ServicesDep, name: FromPath[str]) -> Response[bytes]:
    """Return a file of the image repository; they are public, and protect themselves by signatures."""
    data = services.signing.file(name)
    if data is None:
        raise NotFoundError(f"metadata file {name}: expected a published one")
    tag = f'"{hashlib.sha256(data).hexdigest()[:24]}"'
    same = request.headers.get("if-none-match") == tag
    headers = {"etag": tag, "cache-control": "no-cache"}
    if same:
        return Response(b"", status_code=304, headers=headers)
    return Response(data, media_type="application/json", headers=headers)


@get("/api/v1/devices", opt=_READ, sync_to_thread=True, summary="List devices", tags=["devices"])
def devices(  # noqa: PLR0917 - the query's parameters, which Litestar passes by name
    request: AnyRequest,
    services: ServicesDep,
    offset: Offset = 0,
    limit: Limit = 100,
    text: FromQuery[str] = "",
    target: FromQuery[str] = "",
    online: FromQuery[bool | None] = None,
    label: FromQuery[list[str] | None] = None,
    running: FromQuery[str] = "",
) -> DevicePage:
    """Return devices by id; `label=key=value` may be repeated, `running` is a bundle's digest."""
    which = DeviceFilter(text=text, target=target, online=online, labels=_labels(label), running=running)
    rows, total = services.devices.find(which, offset, limit, request.user.within(Scope.DEVICES_READ))
    models = services.devices.models([row.id for row in rows])
    return DevicePage(items=[_device(row, models[row.id]) for row in rows], total=total)


@get(
    "/api/v1/devices/{device_id:str}",
    opt=_READ,
    sync_to_thread=True,
    summary="Show a device",
    tags=["devices"],
)
def device(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> DeviceOut:
    """Return one device with its models."""
    row = services.devices.seen(request.user, device_id)
    return _device(row, services.devices.models([device_id])[device_id])


@get(
    "/api/v1/devices/{device_id:str}/events",
    opt=_READ,
    sync_to_thread=True,
    summary="List a device's events",
    tags=["devices"],
)
def events(
    request: AnyRequest,
    services: ServicesDep,
    device_id: FromPath[str],
    offset: Offset = 0,
    limit: Limit = 100,
) -> list[EventOut]:
    """Return the steps of a device's updates, the newest first."""
    services.devices.seen(request.user, device_id)
    rows = services.devices.events(device_id, offset, limit)
    return [EventOut(**{name: getattr(row, name) for name in EventOut.__struct_fields__}) for row in rows]


@get(
    "/api/v1/devices/{device_id:str}/actions",
    opt=_READ,
    sync_to_thread=True,
    tags=["devices"],
    summary="List a device's parts in rollouts",
)
def device_actions(
    request: AnyRequest,
    services: ServicesDep,
    device_id: FromPath[str],
    offset: Offset = 0,
    limit: Limit = 100,
) -> list[ActionOut]:
    """Return a device's parts in rollouts, the newest first."""
    services.devices.seen(request.user, device_id)
    return [action_out(row) for row in services.devices.actions(device_id, offset, limit)]


@get(
    "/api/v1/refusals", opt=VIEWER, sync_to_thread=True, summary="List what devices refused", tags=["devices"]
)
def refusals(
    services: ServicesDep, device: FromQuery[str] = "", offset: Offset = 0, limit: Limit = 100
) -> list[RefusalOut]:
    """Return what did not verify on a device, or on any, the newest first."""
    names = [name for name in RefusalOut.__struct_fields__ if name != "device"]
    rows = services.devices.refusals(device, offset, limit)
    return [RefusalOut(device=row.device_id, **{name: getattr(row, name) for name in names}) for row in rows]


@put(
    "/api/v1/devices/{device_id:str}/labels",
    opt=_WRITE,
    sync_to_thread=True,
    summary="Label a device",
    tags=["devices"],
)
def label_device(
    request: AnyRequest, services: ServicesDep, device_id: FromPath[str], data: JSONBody[LabelsIn]
) -> DeviceOut:
    """Replace a device's labels."""
    row = services.devices.label(request.user, device_id, data.labels)
    return _device(row, services.devices.models([device_id])[device_id])


@post(
    "/api/v1/devices/{device_id:str}/flush",
    opt=_WRITE,
    sync_to_thread=True,
    status_code=202,
    summary="Have a device send what waits",
    tags=["devices"],
)
def flush(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> None:
    """Ask a device to close its window and send everything."""
    services.devices.flush(request.user, device_id)


@delete(
    "/api/v1/devices/{device_id:str}",
    opt=OPERATOR,
    sync_to_thread=True,
    summary="Revoke a device",
    tags=["devices"],
)
def revoke_device(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> None:
    """Shut a device out for good."""
    services.devices.revoke(request.user, device_id)
    services.wake_doorman()


@get("/api/v1/claims", opt=OPERATOR, sync_to_thread=True, summary="List claims", tags=["devices"])
def claims(services: ServicesDep, offset: Offset = 0, limit: Limit = 100) -> list[ClaimOut]:
    """Return claims, the newest first, without their tokens."""
    return [_claim(row) for row in services.claims.page(offset, limit)]


@post("/api/v1/claims", opt=_CLAIM, sync_to_thread=True, summary="Make a claim", tags=["devices"])
def add_claim(request: AnyRequest, services: ServicesDep, data: JSONBody[ClaimIn]) -> ClaimOut:
    """Return the new claim with its token, this once."""
    row, token = services.claims.create(
        request.user,
        name=data.name,
        quota=data.quota,
        expires_in=data.expires_in,
        target=data.target,
        labels=data.labels,
        approval=data.approval,
    )
    return _claim(row, str(token))


@delete(
    "/api/v1/claims/{claim_id:int}",
    opt=OPERATOR,
    sync_to_thread=True,
    summary="Revoke a claim",
    tags=["devices"],
)
def revoke_claim(request: AnyRequest, services: ServicesDep, claim_id: FromPath[int]) -> None:
    """Let nobody enrol with a claim any more."""
    services.claims.revoke(request.user, claim_id)


ROUTES = Router(
    path="/",
    route_handlers=[
        trust,
        devices,
        device,
        events,
        device_actions,
        refusals,
        label_device,
        flush,
        revoke_device,
        claims,
        add_claim,
        revoke_claim,
    ],
)
