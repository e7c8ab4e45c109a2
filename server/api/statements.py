"""What devices have signed about themselves."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Router, get
from litestar.params import FromPath

from fleet.wire.messages import Statement
from server.api.deps import ServicesDep, scoped
from server.services.identity.statements import Said, of_device
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Scope

AnyRequest = Request[Principal, Any, Any]


class RunningOut(msgspec.Struct, frozen=True, kw_only=True):
    """One model that a device says, with its signature, that it runs."""

    model: str
    bundle: str
    version: str
    release_counter: int


class AttackOut(msgspec.Struct, frozen=True, kw_only=True):
    """The last thing that a device refused; `since` is when the server first heard of it."""

    what: str
    reason: str
    detail: str
    time: float
    since: float


class StatementOut(msgspec.Struct, frozen=True, kw_only=True):
    """What a device has signed about itself, and how much came in its name that it had not signed.

    `sequence` is 0 where it has signed nothing yet.

    `document` (base64 of MessagePack), `signed_at` and `signature` are what anybody can verify again.
    """

    sequence: int
    signed_at: float
    received_at: float
    boot_id: str
    agent_version: str
    target: str
    assignment_version: int
    clock_untrusted: bool
    models: list[RunningOut]
    refused: int
    attack: AttackOut | None
    document: bytes
    signature: bytes
    key_sha256: str
    badly_signed: int
    badly_signed_at: float | None
    badly_signed_why: str


def _statement(found: Said) -> StatementOut:
    row, told = found.row, found.statement or Statement(sequence=0, boot_id="", agent_version="", target="")
    attack = told.attack
    return StatementOut(
        sequence=told.sequence,
        signed_at=row.signed_at,
        received_at=row.received_at,
        boot_id=told.boot_id,
        agent_version=told.agent_version,
        target=told.target,
        assignment_version=told.assignment_version,
        clock_untrusted=told.clock_untrusted,
        models=[RunningOut(**msgspec.structs.asdict(model)) for model in told.models],
        refused=told.refused,
        attack=AttackOut(**msgspec.structs.asdict(attack), since=row.attack_since or 0.0) if attack else None,
        document=row.statement,
        signature=row.signature,
        key_sha256=row.key,
        badly_signed=row.badly_signed,
        badly_signed_at=row.badly_signed_at,
        badly_signed_why=row.badly_signed_why,
    )


@get(
    "/api/v1/devices/{device_id:str}/statement",
    opt=scoped(Role.VIEWER, Scope.DEVICES_READ, narrows=True),
    sync_to_thread=True,
    summary="Show what a device has signed about itself",
    tags=["devices"],
)
def device_statement(request: AnyRequest, services: ServicesDep, device_id: FromPath[str]) -> StatementOut:
    """Return the newest statement that a device has signed with its own key."""
    services.devices.seen(request.user, device_id)
    return _statement(of_device(services.database, device_id))


ROUTES = Router(path="/", route_handlers=[device_statement])
