"""The audit log: reading it, checking it, and taking it elsewhere."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Router, get
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from server.api.deps import ServicesDep, scoped
from server.db.tables import AuditEntry
from server.services.people.audit import ChainState
from server.services.people.roles import Role
from server.services.people.scopes import Scope

Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]
_READ = scoped(Role.ADMIN, Scope.AUDIT_READ)


class AuditOut(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what; `digest` covers the rest, and `previous` is the digest of the entry before."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    before: dict[str, object] | None
    after: dict[str, object] | None
    previous: str
    digest: str


def _entry(row: AuditEntry) -> AuditOut:
    return AuditOut(**{name: getattr(row, name) for name in AuditOut.__struct_fields__})


@get("/api/v1/audit", opt=_READ, sync_to_thread=True, summary="Read the audit log", tags=["audit"])
def audit(
    services: ServicesDep, offset: Offset = 0, limit: Limit = 100, subject: FromQuery[str] = ""
) -> list[AuditOut]:
    """Return who changed what, the newest first; `subject` such as "rollout 7" narrows it."""
    return [_entry(row) for row in services.audit.entries(offset, limit, subject)]


@get("/api/v1/audit/chain", opt=_READ, sync_to_thread=True, summary="Check the audit log", tags=["audit"])
def chain(services: ServicesDep) -> ChainState:
    """Read the whole log and say whether it is the one that was written; `broken` names what is not."""
    return services.audit.verify()


@get("/api/v1/audit/export", opt=_READ, sync_to_thread=True, summary="Take the audit log out", tags=["audit"])
def export(services: ServicesDep) -> Stream:
    """Return every entry as a line of JSON, the oldest first, and at the end the signed head."""
    return Stream(services.audit.export, media_type="application/x-ndjson")


ROUTES = Router(path="/", route_handlers=[audit, chain, export])
