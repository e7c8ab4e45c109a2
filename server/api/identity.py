"""Who devices are: enrolment, keys registered before, devices that wait, revocation and the end."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody, QueryParameter

from fleet.wire.enrolment import (
    EnrolReply,
    EnrolRequest,
    PendingReply,
    RenewReply,
    RenewRequest,
    TrustedAuthorities,
)
from server.api.auth import address_of
from server.api.deps import OPERATOR, PUBLIC, VIEWER, ServicesDep
from server.db.identity_tables import PendingDevice, RegisteredKey
from server.services.identity.admission import NewKey
from server.services.people.roles import Principal

AnyRequest = Request[Principal, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]
_ACCEPTED: Final = 202
_NOT_MODIFIED: Final = 304


class KeysIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys to register: all of them, or none."""

    keys: list[NewKey]


class KeyOut(msgspec.Struct, frozen=True, kw_only=True):
    """A registered key; `used_at` when its device enrolled."""

    fingerprint: str
    device_id: str
    target: str
    labels: dict[str, str]
    created_by: str
    created_at: float
    used_at: float | None


class PendingOut(msgspec.Struct, frozen=True, kw_only=True):
    """A device that waits to be let in; `address` is where it asked from."""

    device_id: str
    fingerprint: str
    target: str
    labels: dict[str, str]
    claim_id: int | None
    address: str
    asked_at: float
    last_asked_at: float


class DecisionIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was looked at: the fingerprint of the key that the device waits with."""

    fingerprint: str


class DecommissionIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`now`: shut the device out at once, even if it never hears that it shall wipe itself."""

    now: bool = False


@post(
    "/api/v1/enrol", opt=PUBLIC, sync_to_thread=True, summary="Enrol a device", tags=["devices"], security=[]
)
def enrol(
    request: AnyRequest, services: ServicesDep, data: JSONBody[EnrolRequest]
) -> Response[EnrolReply | PendingReply]:
    """Exchange a claim, or a registered key, and a certificate request for credentials.

    202: a person has yet to let the device in; it asks again.
    """
    reply = services.enrolment.enrol(data, address_of(request))
    return Response(reply, status_code=_ACCEPTED if isinstance(reply, PendingReply) else 201)


@post(
    "/api/v1/renew",
    opt=PUBLIC,
    sync_to_thread=True,
    summary="Renew a device's certificate",
    tags=["devices"],
    security=[],
)
def renew(services: ServicesDep, data: JSONBody[RenewRequest]) -> RenewReply:
    """Exchange a request that an enrolled device's identity key vouches for, for a certificate."""
    return services.enrolment.renew(data)


@get(
    "/api/v1/crl",
    opt=PUBLIC,
    sync_to_thread=True,
    summary="Read the certificate revocation list",
    tags=["trust"],
    security=[],
    media_type="application/x-pem-file",
)
def crl(request: AnyRequest, services: ServicesDep) -> Response[bytes]:
    """Return what a broker refuses: one signed list of each authority (RFC 5280), PEM.

    With `If-None-Match` of the list that one has: 304 while it is the newest.
    """
    newest = services.revocations.newest()
    tag = f'"{newest.number}"'
    if request.headers.get("if-none-match") == tag:
        return Response(b"", status_code=_NOT_MODIFIED, headers={"etag": tag})
    return Response(newest.pem, media_type="application/x-pem-file", headers={"etag": tag})


@get(
    "/api/v1/authorities",
    opt=PUBLIC,
    sync_to_thread=True,
    summary="Name the fleet's certificate authorities",
    tags=["trust"],
    security=[],
)
def authorities(services: ServicesDep) -> TrustedAuthorities:
    """Return key ids: a device whose certificate is of another authority, or that knows others, renews."""
    trusted = tuple(x.key_id for x in services.authority.members)
    return TrustedAuthorities(signs=trusted[0], trusted=trusted)


@get("/api/v1/pending", opt=VIEWER, sync_to_thread=True, summary="List devices that wait", tags=["devices"])
def pending(services: ServicesDep, offset: Offset = 0, limit: Limit = 100) -> list[PendingOut]:
    """Return devices that a person has yet to let in, the longest wait first."""
    return [_pending(row) for row in services.admission.waiting(offset, limit)]


@post(
    "/api/v1/pending/{device_id:str}/approve",
    opt=OPERATOR,
    sync_to_thread=True,
    status_code=204,
    summary="Let a waiting device in",
    tags=["devices"],
)
def approve(
    request: AnyRequest, services: ServicesDep, device_id: FromPath[str], data: JSONBody[DecisionIn]
) -> None:
    """Give a waiting device its certificate when it asks again."""
    services.admission.approve(request.user, device_id, data.fingerprint)


@post(
    "/api/v1/pending/{device_id:str}/reject",
    opt=OPERATOR,
    sync_to_thread=True,
    status_code=204,
    summary="Refuse a waiting device",
    tags=["devices"],
)
def reject(
    request: AnyRequest, services: ServicesDep, device_id: FromPath[str], data: JSONBody[DecisionIn]
) -> None:
    """Refuse a waiting device, and its key for good."""
    services.admission.reject(request.user, device_id, data.fingerprint)


@get(
    "/api/v1/device-keys", opt=OPERATOR, sync_to_thread=True, summary="List registered keys", tags=["devices"]
)
def keys(services: ServicesDep, offset: Offset = 0, limit: Limit = 100) -> list[KeyOut]:
    """Return the keys of devices that may enrol, or have enrolled, without a claim."""
    return [_key(row) for row in services.admission.registered(offset, limit)]


@post(
    "/api/v1/device-keys", opt=OPERATOR, sync_to_thread=True, summary="Register device keys", tags=["devices"]
)
def add_keys(request: AnyRequest, services: ServicesDep, data: JSONBody[KeysIn]) -> list[KeyOut]:
    """Let devices with these keys enrol without a claim."""
    return [_key(row) for row in services.admission.register(request.user, data.keys)]


@delete(
    "/api/v1/device-keys/{fingerprint:str}",
    opt=OPERATOR,
    sync_to_thread=True,
    summary="Forget a registered key",
    tags=["devices"],
)
def forget_key(request: AnyRequest, services: ServicesDep, fingerprint: FromPath[str]) -> None:
    """Let nobody enrol with a registered key any more."""
    services.admission.forget_key(request.user, fingerprint)


@post(
    "/api/v1/devices/{device_id:str}/decommission",
    opt=OPERATOR,
    sync_to_thread=True,
    status_code=202,
    summary="Decommission a device",
    tags=["devices"],
)
def decommission(
    request: AnyRequest, services: ServicesDep, device_id: FromPath[str], data: JSONBody[DecommissionIn]
) -> None:
    """Tell a device to wipe itself; it is shut out once it has said that it does."""
    services.devices.decommission(request.user, device_id, now=data.now)
    services.wake_publisher()
    services.wake_doorman()


def _pending(row: PendingDevice) -> PendingOut:
    return PendingOut(**{name: getattr(row, name) for name in PendingOut.__struct_fields__})


def _key(row: RegisteredKey) -> KeyOut:
    return KeyOut(**{name: getattr(row, name) for name in KeyOut.__struct_fields__})


ROUTES = Router(
    path="/",
    route_handlers=[
        enrol,
        renew,
        crl,
        authorities,
        pending,
        approve,
        reject,
        keys,
        add_keys,
        forget_key,
        decommission,
    ],
)
