"""Tokens over HTTP: they do what they were made for, within their limits, and never more than their maker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient

from server.app import create_app
from server.bootstrap import Runtime, build
from server.client.bundles import Layout
from server.console.pages import error_page
from server.console.routes import handlers, template_config
from server.db.tables import Device
from server.errors import ConflictError, ForbiddenError, InvalidError
from server.services.people.roles import SYSTEM, Principal, Role
from server.services.people.scopes import Grant, Scope, parse_grant
from server.settings import Settings
from sim_devices import TARGET, layout

PASSWORD: Final = "correct horse battery"
DAY: Final = 86400.0


class World(NamedTuple):
    """A server with devices on two sites, two models released, and a rollout on each site."""

    runtime: Runtime
    client: TestClient[Litestar]
    folder: Path

    def bearer(self, secret: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {secret}"}

    def token(self, *scopes: str) -> dict[str, str]:
        """Return the headers of a token with these scopes."""
        grants = [parse_grant(scope) for scope in scopes]
        return self.bearer(self.runtime.services.accounts.tokens.add(SYSTEM, "ci", grants=grants)[1])

    def person(self, name: str, role: Role) -> Principal:
        self.runtime.services.accounts.add_user(SYSTEM, name, PASSWORD, role)
        return Principal(name=name, role=role, owner=name)

    def bundle(self, name: str, model: str) -> str:
        """Upload a bundle; return its digest."""
        found = Layout(layout(self.folder / name, weights=name.encode(), model=model))
        for digest in found.digests():
            self.runtime.services.releases.put_blob(digest, [found.path(digest).read_bytes()])
        return str(found.bundle.digest)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tokens")
    runtime = build(Settings(data=folder / "data"))
    app = create_app(
        runtime.services, console=handlers(), templates=template_config("test"), error_page=error_page
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        made = World(runtime, client, folder)
        sites = {
            "cam-1": {"site": "north", "line": "1"},
            "cam-2": {"site": "south", "line": "1"},
            "cam-3": {},
        }
        with runtime.services.database.write() as session:
            for name, labels in sites.items():
                session.add(Device(id=name, target=TARGET, labels=labels, enrolled_at=1.0))
        admin = made.bearer(runtime.services.accounts.tokens.add(SYSTEM, "admin", Role.ADMIN)[1])
        for number, (model, site) in enumerate((("digits-a", "north"), ("faces", "south")), 1):
            body: dict[str, Any] = {"bundles": [made.bundle(model, model)]}
            assert client.post("/api/v1/releases", json=body, headers=admin).status_code == 201
            body = {"release": number, "selection": {"labels": {"site": site}}}
            answer = client.post("/api/v1/rollouts", json=body, headers=admin)
            assert answer.status_code == 201, answer.text
        yield made
    runtime.services.database.close()


def names(answer: Any) -> list[str]:  # noqa: ANN401 - a response
    return [item["id"] for item in answer.json()["items"]]


# --- limits are kept to ------------------------------------------------------------------------------


def test_a_token_limited_to_labels_sees_those_devices_alone(world: World) -> None:
    """A partner runs the northern site: the list, its number and each page are of that site only."""
    north = world.token("devices:read label=site=north")
    found = world.client.get("/api/v1/devices", headers=north)
    assert names(found) == ["cam-1"]
    assert found.json()["total"] == 1
    assert names(world.client.get("/api/v1/devices?label=site=south", headers=north)) == []
    for rest in ("", "/events", "/actions"):
        assert world.client.get(f"/api/v1/devices/cam-1{rest}", headers=north).status_code == 200
        for other in ("cam-2", "cam-3"):
            hidden = world.client.get(f"/api/v1/devices/{other}{rest}", headers=north)
            none = world.client.get(f"/api/v1/devices/nobody{rest}", headers=north)
            assert (hidden.status_code, none.status_code) == (404, 404)
            assert hidden.json()["detail"].replace(other, "x") == none.json()["detail"].replace("nobody", "x")


def test_several_grants_are_several_and_never_one(world: World) -> None:
    """Northern devices of line 2, southern ones of line 1: cam-1 is north *and* line 1, so in neither."""
    token = world.token(
        "devices:read label=site=north label=line=2", "devices:read label=site=south label=line=1"
    )
    assert names(world.client.get("/api/v1/devices", headers=token)) == ["cam-2"]
    token = world.token(
        "rollouts:write model=digits-* label=site=south", "rollouts:write model=faces label=site=north"
    )
    for release, site in ((1, "north"), (2, "south")):
        body = {"release": release, "selection": {"labels": {"site": site}}}
        assert world.client.post("/api/v1/rollouts", json=body, headers=token).status_code == 403
        assert world.client.post("/api/v1/rollouts/preview", json=body, headers=token).status_code == 403


def test_a_limited_grant_beside_one_of_another_scope_opens_nothing_more(world: World) -> None:
    """CVE-2024-46948: a limit that belonged to one permission was forgotten beside another one."""
    token = world.token("devices:read label=site=north", "releases:read", "devices:write label=site=south")
    assert names(world.client.get("/api/v1/devices", headers=token)) == ["cam-1"]
    moved = world.client.put(
        "/api/v1/devices/cam-1/labels", json={"labels": {"site": "south"}}, headers=token
    )
    assert moved.status_code == 404


def test_a_device_is_not_labelled_out_of_its_scope_nor_into_it(world: World) -> None:
    """An operator of the north takes a southern device by calling it northern, or hides a northern one."""
    north = world.token("devices:write label=site=north")
    put = world.client.put
    steal = put("/api/v1/devices/cam-2/labels", json={"labels": {"site": "north"}}, headers=north)
    lose = put("/api/v1/devices/cam-1/labels", json={"labels": {"site": "south"}}, headers=north)
    fine = put("/api/v1/devices/cam-1/labels", json={"labels": {"site": "north", "line": "1"}}, headers=north)
    assert (steal.status_code, lose.status_code, fine.status_code) == (404, 403, 200)
    assert world.client.post("/api/v1/devices/cam-2/flush", headers=north).status_code == 404


def test_a_rollout_stays_within_model_and_labels(world: World) -> None:
    """CI may roll `digits-*` out in the north: nothing else, and no selection that is wider."""
    ci = world.token("rollouts:write model=digits-* label=site=north")
    for selection in ({}, {"devices": ["cam-1"]}, {"labels": {"line": "1"}}, {"labels": {"site": "south"}}):
        body = {"release": 1, "selection": selection}
        assert world.client.post("/api/v1/rollouts", json=body, headers=ci).status_code == 403, selection
    body = {"release": 1, "selection": {"labels": {"site": "north", "line": "1"}}}
    assert world.client.post("/api/v1/rollouts/preview", json=body, headers=ci).status_code == 200
    assert world.client.post("/api/v1/rollouts", json={**body, "release": 2}, headers=ci).status_code == 403
    assert world.client.post("/api/v1/rollouts/2/abort", json={}, headers=ci).status_code == 403
    assert world.client.post("/api/v1/rollouts/1/abort", json={}, headers=ci).status_code == 200


def test_releases_and_rollouts_of_other_models_do_not_exist(world: World) -> None:
    token = world.token("releases:read model=digits-*", "rollouts:read model=digits-?")
    found = world.client.get("/api/v1/releases", headers=token).json()
    assert [x["model"] for x in found] == ["digits-a"]
    assert world.client.get("/api/v1/releases?model=faces", headers=token).json() == []
    assert world.client.get("/api/v1/releases/2", headers=token).status_code == 404
    assert {x["model"] for x in world.client.get("/api/v1/rollouts", headers=token).json()} == {"digits-a"}
    for rest in ("", "/actions"):
        assert world.client.get(f"/api/v1/rollouts/2{rest}", headers=token).status_code == 404


def test_ci_publishes_its_own_model_and_no_other(world: World) -> None:
    ci = world.token("releases:publish model=digits-*")
    for name, model, status in (
        ("mine", "digits-b", 201),
        ("theirs", "faces", 403),
        ("sly", "my-digits-b", 403),
    ):
        body = {"bundles": [world.bundle(name, model)], "version": name}
        answer = world.client.post("/api/v1/releases", json=body, headers=ci)
        assert answer.status_code == status, answer.text


def test_a_claim_gives_the_labels_that_its_maker_is_limited_to(world: World) -> None:
    token = world.token("claims:write label=site=north")
    for labels, status in (({}, 403), ({"site": "south"}, 403), ({"site": "north", "line": "3"}, 201)):
        assert (
            world.client.post("/api/v1/claims", json={"labels": labels}, headers=token).status_code == status
        )


# --- never more than their maker ---------------------------------------------------------------------


def test_a_token_never_gets_more_than_its_maker(world: World) -> None:
    """A viewer makes themselves an administrator's token; an operator one that publishes."""
    tokens, viewer = world.runtime.services.accounts.tokens, world.person("vic", Role.VIEWER)
    with pytest.raises(ForbiddenError):
        tokens.add(viewer, "up", Role.OPERATOR)
    with pytest.raises(ForbiddenError):
        tokens.add(viewer, "up", grants=[Grant(scope=Scope.ROLLOUTS_WRITE)])
    _, secret = tokens.add(viewer, "mine", Role.VIEWER)
    made = world.client.post(
        "/api/v1/tokens", json={"name": "x", "role": "admin"}, headers=world.bearer(secret)
    )
    assert made.status_code == 403
    scoped = world.token("audit:read")
    made = world.client.post(
        "/api/v1/tokens", json={"name": "x", "scopes": [{"scope": "audit:read"}]}, headers=scoped
    )
    assert made.status_code == 403


def test_a_token_shrinks_with_its_owner_and_sleeps_while_they_are_locked_out(world: World) -> None:
    """Olga made a token as a releaser. She becomes a viewer, is locked out, and is let in again."""
    accounts = world.runtime.services.accounts
    olga = world.person("olga", Role.RELEASER)
    _, plain = accounts.tokens.add(olga, "plain", Role.RELEASER)
    _, scoped = accounts.tokens.add(
        olga, "scoped", grants=[Grant(scope=Scope.RELEASES_PUBLISH), Grant(scope=Scope.DEVICES_READ)]
    )
    accounts.change_user(SYSTEM, "olga", role=Role.VIEWER)
    found, limited = accounts.tokens.principal(plain), accounts.tokens.principal(scoped)
    assert found is not None
    assert limited is not None
    assert found.role is Role.VIEWER
    assert [grant.scope for grant in limited.grants] == [Scope.DEVICES_READ]
    accounts.change_user(SYSTEM, "olga", disabled=True)
    assert accounts.tokens.principal(plain) is None
    assert accounts.tokens.principal(scoped) is None
    accounts.change_user(SYSTEM, "olga", disabled=False)
    assert accounts.tokens.principal(plain) is not None


def test_a_token_made_with_a_token_ends_with_it_and_holds_no_longer(world: World) -> None:
    """A thief of a token makes another before the theft is noticed; revoking the one ends both."""
    tokens = world.runtime.services.accounts.tokens
    first, secret = tokens.add(SYSTEM, "stolen", Role.OPERATOR, expires_in=DAY)
    thief = tokens.principal(secret)
    assert thief is not None
    for longer in (None, 2 * DAY):
        with pytest.raises(ForbiddenError, match="no longer"):
            tokens.add(thief, "backdoor", Role.OPERATOR, expires_in=longer)
    second, other = tokens.add(thief, "backdoor", Role.OPERATOR)
    again = tokens.principal(other)
    assert again is not None
    _, third = tokens.add(again, "deeper", Role.VIEWER, expires_in=3600.0)
    assert second.expires_at == first.expires_at
    tokens.revoke(SYSTEM, first.id or 0)
    assert [tokens.principal(x) for x in (secret, other, third)] == [None, None, None]
    with pytest.raises(ForbiddenError, match="revoked"):
        tokens.add(again, "quick", Role.VIEWER)


def test_nobody_changes_their_own_role_with_a_token_of_their_own(world: World) -> None:
    """CVE-2022-45929, CVE-2022-41324: the check knew the person's name, and not that of their token."""
    admin = world.person("boss", Role.ADMIN)
    _, secret = world.runtime.services.accounts.tokens.add(admin, "own", Role.ADMIN)
    for change in ({"role": "viewer"}, {"disabled": True}, {"role": "admin"}):
        answer = world.client.patch("/api/v1/users/boss", json=change, headers=world.bearer(secret))
        assert answer.status_code == 409, answer.text
    with pytest.raises(ConflictError):
        world.runtime.services.accounts.change_user(admin, "boss", role=Role.VIEWER)


def test_people_see_and_revoke_their_own_tokens_and_administrators_all(world: World) -> None:
    tokens = world.runtime.services.accounts.tokens
    ann, bob = world.person("ann", Role.VIEWER), world.person("bob", Role.VIEWER)
    mine, secret = tokens.add(ann, "anns", Role.VIEWER)
    theirs, _ = tokens.add(bob, "bobs", Role.VIEWER)
    listed = world.client.get("/api/v1/tokens", headers=world.bearer(secret)).json()
    assert [(x["name"], x["created_by"], x["secret"]) for x in listed] == [("anns", "ann", None)]
    revoke = world.client.delete
    assert revoke(f"/api/v1/tokens/{theirs.id}", headers=world.bearer(secret)).status_code == 404
    assert revoke(f"/api/v1/tokens/{mine.id}", headers=world.bearer(secret)).status_code == 204
    assert world.client.get("/api/v1/me", headers=world.bearer(secret)).status_code == 401


def test_a_token_of_nobody_lists_itself_and_no_other_of_nobody(world: World) -> None:
    """The server's own tokens have no owner; that they have this in common makes them nobody's together."""
    tokens = world.runtime.services.accounts.tokens
    row, secret = tokens.add(SYSTEM, "lonely", Role.VIEWER)
    listed = world.client.get("/api/v1/tokens", headers=world.bearer(secret)).json()
    assert [x["id"] for x in listed] == [row.id]
    assert world.client.delete("/api/v1/tokens/1", headers=world.bearer(secret)).status_code == 404


def test_a_page_of_errors_tells_a_token_of_scopes_nothing_of_the_fleet(world: World) -> None:
    """The console's frame counts what needs a person: not for somebody who may read one site's devices."""
    token = world.token("devices:read label=site=north")
    answer = world.client.get("/nothing", headers={**token, "Accept": "text/html"})
    assert answer.status_code == 404
    assert "/rollouts" not in answer.text


def test_a_token_expires_in_ninety_days_unless_it_is_said_otherwise(world: World) -> None:
    admin = world.bearer(
        world.runtime.services.accounts.tokens.add(SYSTEM, "a", Role.ADMIN, expires_in=None)[1]
    )
    for told, days in (({}, 90.0), ({"expires_in": DAY}, 1.0), ({"expires_in": None}, None)):
        body = {"name": "x", "role": "viewer", **told}
        made = world.client.post("/api/v1/tokens", json=body, headers=admin).json()
        left = (
            None if made["expires_at"] is None else round((made["expires_at"] - made["created_at"]) / DAY, 3)
        )
        assert left == days
    for wrong in (
        {"role": "viewer", "scopes": [{"scope": "devices:read"}]},
        {},
        {"scopes": [{"scope": "metrics:read", "labels": {"a": "b"}}]},
        {"scopes": [{"scope": "releases:read", "models": ["../x"]}]},
        {"role": "viewer", "expires_in": -1},
        {"role": "viewer", "expires_in": 1e300},
        {"scopes": [{"scope": "devices:read"}] * 33},
    ):
        answer = world.client.post("/api/v1/tokens", json={"name": "x", **wrong}, headers=admin)
        assert answer.status_code in (400, 422), (wrong, answer.text)


# --- how scopes are written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "everything", "devices:read site=north", "devices:read label=site", "metrics:read model=x",
     "audit:read '", "devices:read model=x", "releases:read label=a=b", "releases:read model=A",
     "devices:read label=a=b label=a=c"],
)  # fmt: skip
def test_a_scope_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_grant(text)


_LABELS: Final = st.dictionaries(
    st.from_regex(r"[a-z0-9][a-z0-9._/-]{0,5}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9._ /:+-]{0,5}", fullmatch=True),
    max_size=3,
)
_MODELS: Final = st.lists(st.from_regex(r"[a-z0-9*?][a-z0-9._*?-]{0,5}", fullmatch=True), max_size=3)


@settings(max_examples=30)
@given(_MODELS, _LABELS)
def test_a_scope_is_read_as_it_is_written(models: list[str], labels: dict[str, str]) -> None:
    grant = Grant(scope=Scope.ROLLOUTS_WRITE, models=tuple(models), labels=labels)
    assert parse_grant(str(grant)) == grant


@settings(max_examples=30)
@given(_LABELS, _LABELS)
def test_a_grant_fits_what_has_all_of_its_labels(wanted: dict[str, str], there: dict[str, str]) -> None:
    grant = Grant(scope=Scope.DEVICES_READ, labels=wanted)
    assert grant.fits(labels=there) == (wanted.items() <= there.items())
    assert grant.fits(labels={**there, **wanted})
    assert grant.fits() == (not wanted)
