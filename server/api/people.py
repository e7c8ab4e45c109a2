"""Login, people, and the tokens of their machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post
from litestar.params import FromPath, JSONBody

from server.api.auth import COOKIE, address_of, check_same_site, session_cookie
from server.api.deps import ADMIN, PUBLIC, VIEWER, ServicesDep
from server.db.tables import Token, User
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Grant
from server.services.people.tokens import grants_of

AnyRequest = Request[Principal, Any, Any]


class LoginIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's name and password."""

    name: str
    password: str


class MeOut(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking; `role` is null for a token with scopes."""

    name: str
    role: Role | None


class UserOut(msgspec.Struct, frozen=True, kw_only=True):
    """A person; `origin` is the identity provider's address, "" for one with a password here."""

    name: str
    role: Role
    disabled: bool
    created_at: float
    origin: str


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
    """A new token: of a role or with scopes; `expires_in` in seconds (90 days), null for one that stays."""

    name: str
    role: Role | None = None
    scopes: list[Grant] = []
    expires_in: float | msgspec.UnsetType | None = msgspec.UNSET


class TokenOut(msgspec.Struct, frozen=True, kw_only=True):
    """A token of a role or with scopes; `secret` only in the answer that made it."""

    id: int
    name: str
    role: Role | None
    scopes: list[Grant]
    created_by: str
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    revoked_at: float | None
    secret: str | None = None


def _user(row: User, origins: Mapping[int, str]) -> UserOut:
    return UserOut(
        name=row.name,
        role=Role(row.role),
        disabled=row.disabled,
        created_at=row.created_at,
        origin=origins.get(row.id or 0, ""),
    )


def _token(row: Token, secret: str | None = None) -> TokenOut:
    return TokenOut(
        id=row.id or 0,
        name=row.name,
        role=Role(row.role) if row.role else None,
        scopes=list(grants_of(row)),
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        secret=secret,
    )


@post("/api/v1/login", opt=PUBLIC, sync_to_thread=True, status_code=204, summary="Log in", tags=["accounts"])
def login(request: AnyRequest, services: ServicesDep, data: JSONBody[LoginIn]) -> Response[None]:
    """Set the session cookie."""
    check_same_site(request)
    secret = services.accounts.login(data.name, data.password, address_of(request))
    secure = request.url.scheme == "https"
    return Response(None, status_code=204, cookies=[session_cookie(secret, secure=secure)])


@post(
    "/api/v1/logout", opt=VIEWER, sync_to_thread=True, status_code=204, summary="Log out", tags=["accounts"]
)
def logout(request: AnyRequest, services: ServicesDep) -> Response[None]:
    """End the session of the cookie, and take the cookie away."""
    services.accounts.logout(request.user, request.cookies.get(COOKIE, ""))
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
    origins = services.accounts.origins()
    return [_user(row, origins) for row in services.accounts.users()]


@post("/api/v1/users", opt=ADMIN, sync_to_thread=True, summary="Add a person", tags=["accounts"])
def add_user(request: AnyRequest, services: ServicesDep, data: JSONBody[UserIn]) -> UserOut:
    """Add somebody who can log in."""
    return _user(services.accounts.add_user(request.user, data.name, data.password, data.role), {})


@patch(
    "/api/v1/users/{name:str}", opt=ADMIN, sync_to_thread=True, summary="Change a person", tags=["accounts"]
)
def change_user(
    request: AnyRequest, services: ServicesDep, name: FromPath[str], data: JSONBody[UserChangeIn]
) -> UserOut:
    """Change the role of somebody else, or lock them out; their sessions end."""
    row = services.accounts.change_user(request.user, name, role=data.role, disabled=data.disabled)
    return _user(row, services.accounts.origins())


@get("/api/v1/tokens", opt=VIEWER, sync_to_thread=True, summary="List tokens", tags=["accounts"])
def tokens(request: AnyRequest, services: ServicesDep) -> list[TokenOut]:
    """Return the tokens that the caller answers for, an administrator's all; without secrets."""
    return [_token(row) for row in services.accounts.tokens.listed(request.user)]


@post("/api/v1/tokens", opt=VIEWER, sync_to_thread=True, summary="Make a token", tags=["accounts"])
def add_token(request: AnyRequest, services: ServicesDep, data: JSONBody[TokenIn]) -> TokenOut:
    """Return the new token with its secret, this once; it can never do more than whoever makes it."""
    row, secret = services.accounts.tokens.add(
        request.user, data.name, data.role, grants=data.scopes, expires_in=data.expires_in
    )
    return _token(row, secret)


@delete(
    "/api/v1/tokens/{token_id:int}",
    opt=VIEWER,
    sync_to_thread=True,
    summary="Revoke a token",
    tags=["accounts"],
)
def revoke_token(request: AnyRequest, services: ServicesDep, token_id: FromPath[int]) -> None:
    """Make a token worthless at once, and those that were made with it."""
    services.accounts.tokens.revoke(request.user, token_id)


ROUTES = Router(
    path="/",
    route_handlers=[
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
    ],
)
