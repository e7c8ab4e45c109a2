"""Who is asking, and whether they may: bearer tokens for machines, a session cookie for browsers.

Every route is closed unless it says otherwise: one without an `opt` of `server.api.deps` needs an admin.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.handlers import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.utils import ensure_async_callable

from server.errors import ForbiddenError, UnauthenticatedError
from server.services.container import Services
from server.services.people.accounts import SESSION_SECONDS, Accounts
from server.services.people.roles import Principal, Role

COOKIE: Final = "kedge_session"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
Connection = ASGIConnection[Any, Any, Any, Any]


def session_cookie(secret: str, *, secure: bool) -> Cookie:
    """Return the cookie of a new session: out of scripts' reach, sent to this site only."""
    return Cookie(
        key=COOKIE,
        value=secret,
        max_age=int(SESSION_SECONDS),
        httponly=True,
        samesite="lax",
        secure=secure,
        path="/",
    )


def address_of(connection: Connection) -> str:
    """Return where a request comes from, as the proxies that are trusted say; "" when it is not known."""
    return connection.client.host if connection.client is not None else ""


def check_same_site(connection: Connection) -> None:
    """Refuse a changing request that another site made a browser send.

    Browsers say where a request comes from (`Sec-Fetch-Site`, and `Origin` on every changing request), and
    scripts cannot forge either (Fetch standard; OWASP, "Cross-Site Request Forgery Prevention").

    Raises:
        ForbiddenError: it comes from another site, or does not say.
    """
    if connection.scope["method"] in _SAFE:  # type: ignore[typeddict-item]  # only HTTP scopes get here
        return
    site = connection.headers.get("sec-fetch-site")
    origin = connection.headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        raise ForbiddenError("expected a request from this site's own pages")
    if origin is not None and urlsplit(origin).netloc != connection.headers.get("host"):
        raise ForbiddenError("expected a request from this site's own pages")
    if site is None and origin is None:
        raise ForbiddenError("expected an Origin or Sec-Fetch-Site header beside a session cookie")


class Authentication(AbstractAuthenticationMiddleware):
    """Finds out who is asking; refuses nobody yet."""

    async def authenticate_request(self, connection: Connection) -> AuthenticationResult:
        """Return the principal of the bearer token or cookie, or None."""
        services: Services = connection.app.state.services
        return AuthenticationResult(
            user=await ensure_async_callable(_principal)(services.accounts, connection), auth=None
        )


def _principal(accounts: Accounts, connection: Connection) -> Principal | None:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return accounts.tokens.principal(token.strip())
    secret = connection.cookies.get(COOKIE)
    return accounts.by_cookie(secret) if secret else None


def guard(connection: Connection, handler: BaseRouteHandler) -> None:
    """Let a request pass that the handler's `opt` allows.

    Raises:
        UnauthenticatedError: it does not say who asks.
        ForbiddenError: their role is too low, or another site sent it.
    """
    principal = connection.scope.get("user")
    if isinstance(principal, Principal) and principal.by_cookie:
        check_same_site(connection)
    if handler.opt.get("public"):
        return
    if not isinstance(principal, Principal):
        raise UnauthenticatedError("expected a login or a valid token; yours is missing, expired or revoked")
    if principal.role is not None:
        principal.require(handler.opt.get("role", Role.ADMIN))
        return
    _require_scope(principal, handler)


def _require_scope(principal: Principal, handler: BaseRouteHandler) -> None:
    """Let a token with scopes pass where the handler names one of them.

    A grant with limits counts only where the handler says that it keeps to them (`narrows`): a handler that
    knows of none would show or change everything.
    """
    scope = handler.opt.get("scope")
    for grant in principal.grants:
        if grant.scope is scope and (handler.opt.get("narrows") or not grant.limited):
            return
    wanted = "a role" if scope is None else f"scope {scope.value}"
    raise ForbiddenError(f"expected {wanted}, {principal.name} has {len(principal.grants)} other scopes")
