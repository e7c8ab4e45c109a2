"""Who may call what: read off the routes themselves, for the reference page and the tests."""

from __future__ import annotations

from dataclasses import dataclass

from litestar import Litestar
from litestar.di import Provide
from litestar.routes import HTTPRoute

from server.app import api_routes
from server.console.routes import handlers
from server.services.people.roles import Role
from server.services.people.scopes import Scope


@dataclass(frozen=True, kw_only=True, order=True)
class Permission:
    """One method of one path.

    Attributes:
        path: with its parameters in braces.
        public: anybody may call it.
        role: the lowest role that may; None where anybody may.
        scope: what a token without a role needs; None where no scope is enough.
        narrows: limits of the scope are kept to; without it, only a scope without limits is enough.
        summary: what it does; "" for a page of the console.
    """

    path: str
    method: str
    public: bool
    role: Role | None
    scope: Scope | None
    narrows: bool
    summary: str


def permissions(app: Litestar | None = None) -> list[Permission]:
    """Return the permission of every route of an application, or of the server's own, by path and method."""
    found = [
        Permission(
            path=route.path_format,
            method=method,
            public=bool(handler.opt.get("public")),
            role=None if handler.opt.get("public") else handler.opt.get("role", Role.ADMIN),
            scope=handler.opt.get("scope"),
            narrows=bool(handler.opt.get("narrows")),
            summary=handler.summary or "",
        )
        for route in (app or _described()).routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods
        if method != "OPTIONS"
    ]
    return sorted(found, key=lambda x: (not x.path.startswith("/api"), x.path, x.method))


def _described() -> Litestar:
    """Return the application without a server: it answers nothing."""
    return Litestar(
        route_handlers=[*api_routes(), *handlers()],
        dependencies={"services": Provide(lambda: None, sync_to_thread=False)},
        openapi_config=None,
    )
