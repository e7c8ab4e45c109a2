"""Health, metrics, login, people, tokens, and the audit log."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.auth import COOKIE, check_same_site, session_cookie
from server.api.deps import ADMIN, PUBLIC, VIEWER, ServicesDep
from server.db.tables import AuditEntry, Token, User
from server.services.roles import Principal, Role

AnyRequest = Request[Principal, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=500)]
Offset = Annotated[int, QueryParameter(ge=0)]


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


class LoginIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's name and password."""

    name: str
    password: str


class MeOut(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking."""

    name: str
    role: Role


class UserOut(msgspec.Struct, frozen=True, kw_only=True):
    """A person."""

    name: str
    role: Role
    disabled: bool
    created_at: float


class UserIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new person."""

    name: str
    password: str
    role: Role


class UserChangeIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes of a person."""

    role: Role | None = None
    disabled: bool | None = None


class PasswordIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caller's old and new password."""

    old: str
    new: str


class TokenIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new token; `expires_in` in seconds, or null for one that stays."""

    name: str
    role: Role
    expires_in: float | None = None


class TokenOut(msgspec.Struct, frozen=True, kw_only=True):
    """A token; `secret` only in the answer that made it."""

    id: int
    name: str
    role: Role
    created_by: str
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    revoked_at: float | None
    secret: str | None = None


class AuditOut(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    before: dict[str, object] | None
    after: dict[str, object] | None


def _user(row: User) -> UserOut:
    return UserOut(name=row.name, role=Role(row.role), disabled=row.disabled, created_at=row.created_at)


def _token(row: Token, secret: str | None = None) -> TokenOut:
    return TokenOut(
        id=row.id or 0,
        name=row.name,
        role=Role(row.role),
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        secret=secret,
    )


def _audit(row: AuditEntry) -> AuditOut:
    return AuditOut(
        id=row.id or 0,
        at=row.at,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        before=row.before,
        after=row.after,
    )


@get(
    "/api/v1/health", opt=PUBLIC, sync_to_thread=True, summary="Say whether the server works", tags=["system"]
)
def health(services: ServicesDep) -> Response[HealthOut]:
    """Return 200 when every part works, 503 otherwise; without details, for load balancers."""
    parts = services.health.parts()
    ok = all(part.ok for part in parts)
    body = HealthOut(ok=ok, parts=[PartOut(name=part.name, ok=part.ok) for part in parts])
    return Response(body, status_code=200 if ok else 503)


@get("/api/v1/status", opt=VIEWER, sync_to_thread=True, summary="Say how every part is", tags=["system"])
def status(services: ServicesDep) -> StatusOut:
    """Return parts and workers with what is wrong, and counts since the start."""
    parts = [StatusPartOut(name=x.name, ok=x.ok, detail=x.detail) for x in services.health.parts()]
    return StatusOut(ok=all(x.ok for x in parts), parts=parts, counts=services.health.counts())


@get("/metrics", opt=VIEWER, sync_to_thread=True, summary="Metrics for Prometheus", tags=["system"])
def metrics(services: ServicesDep) -> Response[bytes]:
    """Return Prometheus' text format."""
    return Response(
        services.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST}, media_type="text/plain"
    )


@post("/api/v1/login", opt=PUBLIC, sync_to_thread=True, status_code=204, summary="Log in", tags=["accounts"])
def login(request: AnyRequest, services: ServicesDep, data: JSONBody[LoginIn]) -> Response[None]:
    """Set the session cookie."""
    check_same_site(request)
    address = request.client.host if request.client else ""
    secret = services.accounts.login(data.name, data.password, address)
    secure = request.url.scheme == "https"
    return Response(None, status_code=204, cookies=[session_cookie(secret, secure=secure)])


@post(
    "/api/v1/logout", opt=VIEWER, sync_to_thread=True, status_code=204, summary="Log out", tags=["accounts"]
)
def logout(request: AnyRequest, services: ServicesDep) -> Response[None]:
    """End the session of the cookie, and take the cookie away."""
    services.accounts.logout(request.cookies.get(COOKIE, ""))
    response = Response(None, status_code=204)
    response.delete_cookie(COOKIE)
    return response


@get("/api/v1/me", opt=VIEWER, sync_to_thread=False, summary="Say who is asking", tags=["accounts"])
def me(request: AnyRequest) -> MeOut:
    """Return the caller's name and role."""
    return MeOut(name=request.user.name, role=request.user.role)


@post(
    "/api/v1/me/password",
    opt=VIEWER,
    sync_to_thread=True,
    status_code=204,
    summary="Change your password",
    tags=["accounts"],
)
def change_password(request: AnyRequest, services: ServicesDep, data: JSONBody[PasswordIn]) -> None:
    """Change the caller's own password; every session of theirs ends."""
    services.accounts.change_password(request.user, data.old, data.new)


@get("/api/v1/users", opt=ADMIN, sync_to_thread=True, summary="List people", tags=["accounts"])
def users(services: ServicesDep) -> list[UserOut]:
    """Return everybody, by name."""
    return [_user(row) for row in services.accounts.users()]


@post("/api/v1/users", opt=ADMIN, sync_to_thread=True, summary="Add a person", tags=["accounts"])
def add_user(request: AnyRequest, services: ServicesDep, data: JSONBody[UserIn]) -> UserOut:
    """Add somebody who can log in."""
    return _user(services.accounts.add_user(request.user, data.name, data.password, data.role))


@patch(
    "/api/v1/users/{name:str}", opt=ADMIN, sync_to_thread=True, summary="Change a person", tags=["accounts"]
)
def change_user(
    request: AnyRequest, services: ServicesDep, name: FromPath[str], data: JSONBody[UserChangeIn]
) -> UserOut:
    """Change the role of somebody else, or lock them out; their sessions end."""
    return _user(services.accounts.change_user(request.user, name, role=data.role, disabled=data.disabled))


@get("/api/v1/tokens", opt=ADMIN, sync_to_thread=True, summary="List tokens", tags=["accounts"])
def tokens(services: ServicesDep) -> list[TokenOut]:
    """Return every token that was made, without secrets."""
    return [_token(row) for row in services.accounts.tokens()]


@post("/api/v1/tokens", opt=ADMIN, sync_to_thread=True, summary="Make a token", tags=["accounts"])
def add_token(request: AnyRequest, services: ServicesDep, data: JSONBody[TokenIn]) -> TokenOut:
    """Return the new token with its secret, this once."""
    row, secret = services.accounts.add_token(request.user, data.name, data.role, data.expires_in)
    return _token(row, secret)


@delete(
    "/api/v1/tokens/{token_id:int}",
    opt=ADMIN,
    sync_to_thread=True,
    summary="Revoke a token",
    tags=["accounts"],
)
def revoke_token(request: AnyRequest, services: ServicesDep, token_id: FromPath[int]) -> None:
    """Make a token worthless at once."""
    services.accounts.revoke_token(request.user, token_id)


@get("/api/v1/audit", opt=ADMIN, sync_to_thread=True, summary="Read the audit log", tags=["system"])
def audit(
    services: ServicesDep, offset: Offset = 0, limit: Limit = 100, subject: FromQuery[str] = ""
) -> list[AuditOut]:
    """Return who changed what, the newest first; `subject` such as "rollout 7" narrows it."""
    return [_audit(row) for row in services.audit.entries(offset, limit, subject)]


ROUTES = Router(
    path="/",
    route_handlers=[
        health,
        status,
        metrics,
        login,
        logout,
        me,
        change_password,
        users,
        add_user,
        change_user,
        tokens,
        add_token,
        revoke_token,
        audit,
    ],
)
