"""The authorisation matrix, whole and over HTTP: every route as everybody, against the page in the docs.

A new route is called without anybody adding it here; it fails until `make docs` has put it on the page, where
whoever reviews the change reads who may call it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from server.api.auth import COOKIE
from server.app import create_app
from server.bootstrap import Runtime, build
from server.console.pages import error_page
from server.console.routes import handlers, template_config
from server.permissions import Permission, permissions
from server.services.people.roles import SYSTEM, Principal, Role
from server.services.people.scopes import RULES, Grant, Scope
from server.settings import Settings

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "reference" / "permissions.md"
PASSWORD: Final = "correct horse battery"
#: What anybody may reach; a route that is added here is open to the world.
OPEN: Final = {
    "GET /api/v1/blobs/{digest}",
    "GET /api/v1/authorities",
    "GET /api/v1/crl",
    "GET /api/v1/health",
    "GET /api/v1/trust/{name}",
    "POST /api/v1/enrol",
    "POST /api/v1/login",
    "POST /api/v1/renew",
    "GET /login",
    "GET /login/oidc",
    "GET /login/oidc/callback",
    "GET /login/oidc/leave",
    "GET /static/{file_path}",
    "HEAD /static/{file_path}",
    "POST /login",
}
#: Streams without an end: whoever is let in stays, so that only refusals are tried.
STREAMS: Final = {"GET /live/lines", "GET /live/stream"}
#: What viewers may change: their own sessions, password and tokens. One route only computes.
OWN: Final = {
    "POST /api/v1/logout", "POST /logout", "POST /api/v1/me/password", "POST /api/v1/tokens",
    "DELETE /api/v1/tokens/{token_id}", "POST /people/tokens", "POST /people/tokens/{token_id}/revoke",
    "POST /api/v1/rollouts/preview",
}  # fmt: skip
#: Everybody whom no route but the open ones knows.
NOBODIES: Final = ("nobody", "locked out", "token of a locked out", "expired", "revoked", "made up")


class Row(NamedTuple):
    """One line of the page."""

    route: str
    may: frozenset[str]
    scope: str
    narrows: bool


def rows() -> dict[str, Row]:
    """Read the page's tables as people do."""
    found: dict[str, Row] = {}
    heads = ("nobody", *(role.value for role in Role))
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != len(heads) + 2 or not cells[0].startswith("`"):
            continue
        route = cells[0].strip("`")
        may = frozenset(head for head, cell in zip(heads, cells[1:-1], strict=True) if cell == "yes")
        scope = re.match(r"`([a-z:]+)`", cells[-1])
        found[route] = Row(route, may, scope[1] if scope else "", "within its limits" in cells[-1])
    return found


class World(NamedTuple):
    """A server, its application, and the headers of everybody."""

    runtime: Runtime
    app: Litestar
    headers: Mapping[str, dict[str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    runtime = build(Settings(data=tmp_path_factory.mktemp("matrix")))
    app = create_app(
        runtime.services, console=handlers(), templates=template_config("test"), error_page=error_page
    )
    yield World(runtime, app, everybody(runtime))
    runtime.services.database.close()


def everybody(runtime: Runtime) -> dict[str, dict[str, str]]:
    """Make one of each: roles, scopes with and without limits, and those who are nobody any more."""
    accounts = runtime.services.accounts
    tokens = accounts.tokens
    secrets = {role.value: tokens.add(SYSTEM, role.value, role)[1] for role in Role}
    for scope, rule in RULES.items():
        secrets[scope.value] = tokens.add(SYSTEM, "scoped", grants=[Grant(scope=scope)])[1]
        if rule.models or rule.labels:
            limit = Grant(scope=scope, **({"models": ("none-*",)} if rule.models else {"labels": {"a": "b"}}))
            secrets[f"{scope.value} limited"] = tokens.add(SYSTEM, "limited", grants=[limit])[1]
    accounts.add_user(SYSTEM, "gone", PASSWORD, Role.ADMIN)
    session = accounts.login("gone", PASSWORD, "here")
    gone = Principal(name="gone", role=Role.ADMIN, owner="gone")
    secrets["token of a locked out"] = tokens.add(gone, "gone", Role.ADMIN)[1]
    accounts.change_user(SYSTEM, "gone", disabled=True)
    secrets["expired"] = tokens.add(SYSTEM, "expired", Role.ADMIN, expires_in=1e-6)[1]
    row, secrets["revoked"] = tokens.add(SYSTEM, "revoked", Role.ADMIN)
    tokens.revoke(SYSTEM, row.id or 0)
    found = {name: {"Authorization": f"Bearer {secret}"} for name, secret in secrets.items()}
    own = {"Cookie": f"{COOKIE}={session}", "Origin": "http://testserver.local"}
    return {**found, "nobody": {}, "made up": {"Authorization": "Bearer made-up"}, "locked out": own}


def address(route: str) -> tuple[str, str]:
    """Return method and a path of what does not exist, so that nothing that matters is changed."""
    method, _, pattern = route.partition(" ")
    return method, re.sub(r"\{(\w+)\}", lambda m: "987654" if m[1] in _NUMBERS else "no-such-thing", pattern)


_NUMBERS: Final = {"claim_id", "release_id", "rollout_id", "token_id"}


def outcome(client: TestClient[Litestar], route: str, headers: dict[str, str]) -> str:
    """Call a route; return "who are you", "not allowed" or "let in"."""
    method, path = address(route)
    body: dict[str, str] | None = {} if method in ("POST", "PUT", "PATCH") else None
    answer = client.request(method, path, json=body, headers=headers, follow_redirects=False)
    sent = answer.headers.get("location", "")
    # logging out leads to the login page too, to another part of it
    if answer.status_code == 401 or sent == "/login" or sent.startswith("/login?to="):
        return "who are you"
    return "not allowed" if answer.status_code == 403 else "let in"


def test_the_page_has_every_route_and_no_other() -> None:
    """Somebody adds a route and forgets to look at who may call it."""
    listed, there = rows(), {f"{x.method} {x.path}": x for x in permissions()}
    assert listed.keys() == there.keys(), "run `make docs`, and read who may call the new route"
    for route, row in listed.items():
        assert row == _row(there[route]), route


def _row(x: Permission) -> Row:
    roles = {role.value for role in Role if x.role is None or role.includes(x.role)}
    may = frozenset(roles | ({"nobody"} if x.public else set()))
    return Row(f"{x.method} {x.path}", may, x.scope.value if x.scope else "", x.narrows)


@pytest.mark.parametrize("who", [*NOBODIES])
def test_nobody_is_let_in_but_where_all_the_world_is(world: World, who: str) -> None:
    """Without a token, with one that ended, or locked out: all the same, on every route."""
    with TestClient(world.app, raise_server_exceptions=False) as client:
        for route, row in rows().items():
            if "nobody" in row.may:
                assert route in OPEN, f"{route}: is it to be open to the world?"
                continue
            assert outcome(client, route, world.headers[who]) == "who are you", (who, route)
    assert {route for route, row in rows().items() if "nobody" in row.may} == OPEN


@pytest.mark.parametrize("role", [*Role])
def test_each_role_is_let_in_where_the_page_says_and_nowhere_else(world: World, role: Role) -> None:
    with TestClient(world.app, raise_server_exceptions=False) as client:
        for route, row in rows().items():
            allowed = role.value in row.may
            if route in OPEN or (allowed and route in STREAMS):
                continue
            expected = "let in" if allowed else "not allowed"
            assert outcome(client, route, world.headers[role.value]) == expected, (role, route)


@pytest.mark.parametrize("scope", [*Scope])
def test_each_scope_is_let_in_where_the_page_says_and_nowhere_else(world: World, scope: Scope) -> None:
    """A scope opens the routes that name it; a page of the console and whatever takes a role stay closed."""
    limited = world.headers.get(f"{scope.value} limited")
    opened = 0
    with TestClient(world.app, raise_server_exceptions=False) as client:
        for route, row in rows().items():
            if route in OPEN:
                continue
            named = row.scope == scope.value
            opened += named
            expected = "let in" if named else "not allowed"
            assert outcome(client, route, world.headers[scope.value]) == expected, route
            if limited is not None and row.scope and not (named and row.narrows):
                assert outcome(client, route, limited) == "not allowed", route
    assert opened, "a scope that opens nothing"


def test_no_route_asks_for_less_by_a_scope_than_by_a_role() -> None:
    """Who makes a token needs the scope's role: a route above it would be reached by a detour."""
    for x in permissions():
        if x.scope is not None:
            assert x.role is not None
            assert Role(RULES[x.scope].role).includes(x.role), x.path
            assert x.narrows or not (RULES[x.scope].models or RULES[x.scope].labels), x.path


def test_viewers_change_nothing_of_others() -> None:
    for x in permissions():
        route = f"{x.method} {x.path}"
        if x.method not in ("GET", "HEAD") and not x.public and route not in OWN:
            assert x.role is not Role.VIEWER, route
