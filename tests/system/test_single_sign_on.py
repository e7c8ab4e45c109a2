"""People from an identity provider: a real provider on loopback, which also lies; one lie, one test."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from litestar import Litestar
from litestar.testing import TestClient

from identity_provider import CLIENT, SECRET, IdentityProvider, identity_provider
from server.adapters.oidc import OidcProvider
from server.api.auth import COOKIE
from server.app import create_app
from server.bootstrap import Runtime, build
from server.console.pages import error_page
from server.console.routes import handlers, template_config
from server.errors import ConflictError, SettingsError
from server.oidc_settings import OidcSettings
from server.services.people.roles import SYSTEM, Role
from server.services.people.single_sign_on import claimed, readable_name
from server.settings import Settings

PASSWORD: Final = "correct horse battery"
ORIGIN: Final = "http://testserver.local"


class World(NamedTuple):
    """A server, its provider, and the application."""

    provider: IdentityProvider
    runtime: Runtime
    app: Litestar
    portal: BlockingPortal

    def browser(self) -> TestClient[Litestar]:
        """Return a new browser; all of them in one event loop, for a new one per request takes long."""
        browser = TestClient(self.app, raise_server_exceptions=False, base_url=ORIGIN)
        browser.headers["Accept"] = "text/html"
        browser.blocking_portal = self.portal
        return browser


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with identity_provider() as provider:
        oidc = OidcSettings(
            issuer=provider.issuer, client_id=CLIENT, client_secret=SECRET, role_claim="groups",
            roles=(("fleet-admins", "admin"), ("fleet", "operator")), default_role="viewer", title="Example",
        )  # fmt: skip
        runtime = build(Settings(data=tmp_path_factory.mktemp("sso"), public_url=ORIGIN, oidc=oidc))
        runtime.services.accounts.add_user(SYSTEM, "paul", PASSWORD, Role.ADMIN)
        app = create_app(
            runtime.services, console=handlers(), templates=template_config("test"), error_page=error_page
        )
        with start_blocking_portal() as portal:
            yield World(provider, runtime, app, portal)
        runtime.services.database.close()


@pytest.fixture
def world(made: World) -> World:
    made.provider.honest()
    return made


def to_provider(browser: TestClient[Litestar], button: str = "/login/oidc") -> str:
    """Press the button, prove who one is; return the address that the provider sends the browser to."""
    begun = browser.get(button, follow_redirects=False)
    assert begun.status_code == 303, begun.text
    sent = httpx.get(begun.headers["location"], trust_env=False)
    return str(sent.headers["location"])


def come_back(browser: TestClient[Litestar], address: str) -> httpx.Response:
    """Follow the provider's redirect."""
    parts = urlsplit(address)
    assert f"{parts.scheme}://{parts.netloc}" == ORIGIN
    return browser.get(f"{parts.path}?{parts.query}", follow_redirects=False)


def sign_in(world: World) -> tuple[TestClient[Litestar], httpx.Response]:
    browser = world.browser()
    return browser, come_back(browser, to_provider(browser))


def me(browser: TestClient[Litestar]) -> Any:  # noqa: ANN401 - JSON
    answer = browser.get("/api/v1/me")
    return answer.json() if answer.status_code == 200 else None


def refused(world: World, text: str) -> None:
    """Sign in; it must not succeed, and the page says why."""
    browser, answer = sign_in(world)
    assert answer.status_code in (401, 403, 502), answer.text
    assert text in answer.text
    assert COOKIE not in browser.cookies
    assert me(browser) is None


@pytest.mark.parametrize(
    ("asked", "page"), [("/rollouts/3?group=1", "/rollouts/3?group=1"), ("//evil.example", "/")]
)
def test_signing_in_leads_to_the_page_that_was_asked_for(world: World, asked: str, page: str) -> None:
    """Rita follows a link from a message; Mallory sends her one that would end on another site."""
    browser = world.browser()
    login = browser.get("/login", params={"to": asked}).text
    button = "/login/oidc" + (f"?{urlencode({'to': page}, safe='/')}" if page != "/" else "")
    assert f'href="{button}"' in login
    answer = come_back(browser, to_provider(browser, f"/login/oidc?{urlencode({'to': asked})}"))
    assert (answer.status_code, answer.headers["location"]) == (303, page)


def test_a_person_signs_in_and_is_listed_with_where_they_come_from(world: World) -> None:
    """Rita presses the button; she looks around, has no password here, and her groups give the role."""
    browser, answer = sign_in(world)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert me(browser) == {"name": "rita", "role": "viewer"}
    assert "Log in with Example" in world.browser().get("/login").text
    with pytest.raises(ConflictError, match="identity provider"):
        world.runtime.services.accounts.recover("rita", with_token=True)
    with pytest.raises(ConflictError, match="groups"):
        world.runtime.services.accounts.change_user(SYSTEM, "rita", role=Role.ADMIN)
    entry = world.runtime.services.audit.entries(subject="user rita")[0]
    assert (entry.actor, entry.after) == ("kedge", {"role": "viewer", "from": world.provider.issuer})
    local = world.browser().post(
        "/login", data={"name": "rita", "password": ""}, headers={"Origin": ORIGIN}, follow_redirects=False
    )
    assert local.status_code == 401


def test_groups_give_the_highest_role_at_each_sign_in_and_none_takes_it_all(world: World) -> None:
    """Tom changes teams: his role follows, at his next sign-in, down as well as up."""
    for groups, role in ((["fleet"], "operator"), (["fleet", "fleet-admins"], "admin"), ("others", "viewer")):
        world.provider.person = {"sub": "u-tom", "preferred_username": "tom@example.com", "groups": groups}
        browser, _ = sign_in(world)
        assert me(browser) == {"name": "tom", "role": role}


def test_who_left_every_group_is_out_with_all_their_tokens(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nina leaves the fleet's team. Her next sign-in is refused, and ends what she had open."""
    oidc = OidcSettings(
        issuer=world.provider.issuer, client_id=CLIENT, client_secret=SECRET, role_claim="realm_access.roles",
        roles=(("fleet", "operator"),),
    )  # fmt: skip
    runtime = build(Settings(data=tmp_path_factory.mktemp("strict"), public_url=ORIGIN, oidc=oidc))
    app = create_app(runtime.services, console=handlers(), templates=template_config("test"))
    strict = World(world.provider, runtime, app, world.portal)
    world.provider.person = {"sub": "n", "preferred_username": "nina", "realm_access": {"roles": ["fleet"]}}
    browser, _ = sign_in(strict)
    made = browser.post("/api/v1/tokens", json={"name": "ci", "role": "viewer"}, headers={"Origin": ORIGIN})
    secret = made.json()["secret"]
    assert runtime.services.accounts.tokens.principal(secret) is not None
    world.provider.person["realm_access"] = {"roles": ["kitchen"]}
    refused(strict, "no group")
    assert me(browser) is None
    assert runtime.services.accounts.tokens.principal(secret) is None
    world.provider.person = {"sub": "stranger", "preferred_username": "x"}
    refused(strict, "no group")
    assert [user.name for user in runtime.services.accounts.users()] == ["admin", "nina"]
    runtime.services.database.close()


def test_a_person_who_is_locked_out_here_stays_out(world: World) -> None:
    """The provider still vouches for Carl; the administrator has locked him out of this server."""
    world.provider.person = {"sub": "u-carl", "preferred_username": "carl"}
    browser, _ = sign_in(world)
    world.runtime.services.accounts.change_user(SYSTEM, "carl", disabled=True)
    assert me(browser) is None
    refused(world, "locked out")


@pytest.mark.parametrize("name", ["admin", "paul", "kedge", "Admin", "admin@evil.example"])
def test_nobody_becomes_somebody_else_by_being_called_like_them(world: World, name: str) -> None:
    """An attacker registers at the provider as "admin", in the hope to become the local one."""
    world.provider.person = {"sub": f"evil {name}", "preferred_username": name}
    browser, _ = sign_in(world)
    found = me(browser)
    assert found["role"] == "viewer"
    assert found["name"] not in ("admin", "paul", "kedge")
    assert found["name"].startswith(f"{name.partition('@')[0].lower()}-")


def test_an_address_of_mail_that_is_not_verified_names_nobody(world: World) -> None:
    """The provider lets everybody claim any address; a verified one is good for a name, and no more."""
    world.provider.person = {"sub": "u-mail", "email": "paul@example.com", "email_verified": False}
    browser, _ = sign_in(world)
    assert me(browser)["name"].startswith("person")
    assert readable_name({"email": "eve@example.com", "email_verified": True}) == "eve"
    assert readable_name({"email": "eve@example.com", "email_verified": "true"}) == "person"


def test_the_same_subject_is_the_same_person_whatever_they_are_called(world: World) -> None:
    world.provider.person = {"sub": "u-mary", "preferred_username": "mary"}
    sign_in(world)
    world.provider.person["preferred_username"] = "admin"
    browser, _ = sign_in(world)
    assert me(browser)["name"] == "mary"


# --- tokens that lie ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lies", "text"),
    [
        ({"iss": "https://evil.example"}, "iss"),
        ({"aud": "another-client"}, "aud"),
        ({"aud": [CLIENT, "another"], "azp": None}, "azp"),
        ({"azp": "another-client"}, "azp"),
        ({"exp": 1}, "expired"),
        ({"iat": 4_000_000_000}, "does not verify"),
        ({"exp": None}, "exp"),
        ({"nonce": "of another sign-in"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "does not verify"),
        ({"sub": "x" * 256}, "names nobody"),
        ({"at_hash": "of another token"}, "at_hash"),
    ],
)
def test_a_token_that_is_for_another_or_too_old_is_refused(
    world: World, lies: dict[str, Any], text: str
) -> None:
    """Each claim that ties the token to this issuer, server, sign-in and hour is checked."""
    world.provider.lies = lies
    refused(world, text)


def test_clocks_may_differ_by_a_minute(world: World) -> None:
    """The provider's clock is 50 seconds ahead; nobody should have to notice."""
    import time

    world.provider.lies = {"iat": int(time.time()) + 50, "exp": int(time.time()) - 50}
    browser, _ = sign_in(world)
    assert me(browser) is not None


def _unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [json.dumps({**header, "alg": "none"}), json.dumps(claims)]
    return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts) + "."


def test_a_token_without_a_signature_is_refused(world: World) -> None:
    """`alg: none`: the oldest trick there is."""
    world.provider.sign = _unsigned
    refused(world, "does not verify")


def test_the_public_key_is_no_secret_to_sign_with(world: World) -> None:
    """Key confusion: a token signed with HMAC, and the provider's public key as the secret."""
    public = world.provider.keys[0].as_pem(private=False)
    world.provider.sign = lambda header, claims: jwt.encode(
        {**header, "alg": "HS256"}, claims, OctKey.import_key(base64.b64encode(public)), algorithms=["HS256"]
    )
    refused(world, "does not verify")


def test_a_key_that_the_token_brings_itself_counts_nothing(world: World) -> None:
    """The header carries the attacker's own key, under the provider's key id."""
    evil = RSAKey.generate_key(2048)
    world.provider.header = {"jwk": evil.as_dict(private=False)}
    world.provider.sign = lambda header, claims: jwt.encode(header, claims, evil)
    refused(world, "does not verify")


def test_a_new_key_of_the_provider_is_fetched_and_not_for_every_bad_token(world: World) -> None:
    """The provider changes keys: people sign in at once. Many bad tokens ask nothing of the provider."""
    sign_in(world)
    kept = made_fresh(world)
    world.provider.new_key()
    browser, _ = sign_in(world)
    assert me(browser) is not None
    before = world.provider.asked.count("keys")
    world.provider.sign = _unsigned
    for _ in range(3):
        refused(world, "does not verify")
    assert world.provider.asked.count("keys") == before
    assert world.provider.asked.count("discovery") == kept


def made_fresh(world: World) -> int:
    """Age the provider's keys beyond the time between two fetches; return how often it was discovered."""
    sign_on = world.runtime.services.single_sign_on
    provider = None if sign_on is None else sign_on._provider
    assert isinstance(provider, OidcProvider)
    assert provider._keys is not None
    provider._keys = (0.0, provider._keys[1])
    return world.provider.asked.count("discovery")


# --- the way there and back --------------------------------------------------------------------------


def test_an_answer_is_good_for_the_browser_that_asked(world: World) -> None:
    """An attacker sends a victim the address of their own sign-in, to have them work under their name."""
    attacker, victim = world.browser(), world.browser()
    address = to_provider(attacker)
    assert come_back(victim, address).status_code == 401
    to_provider(victim)
    assert come_back(victim, address).status_code == 401
    assert me(victim) is None


def test_an_answer_is_good_once(world: World) -> None:
    """Somebody finds the address in a proxy's log, and even has the cookie."""
    browser = world.browser()
    address = to_provider(browser)
    cookie = browser.cookies["kedge_sign_in"]
    assert come_back(browser, address).status_code == 303
    assert "kedge_sign_in" not in browser.cookies
    thief = world.browser()
    thief.cookies.set("kedge_sign_in", cookie)
    answer = come_back(thief, address)
    assert answer.status_code == 401
    assert "used already" in answer.text


@pytest.mark.parametrize("cookie", ["", "nonsense", base64.urlsafe_b64encode(b'{"state":1}').decode()])
def test_a_spoiled_cookie_is_no_sign_in(world: World, cookie: str) -> None:
    browser = world.browser()
    address = to_provider(browser)
    browser.cookies.set("kedge_sign_in", cookie)
    assert come_back(browser, address).status_code in (401, 303)
    lost = world.browser()
    lost.cookies.set("kedge_sign_in", cookie)
    assert come_back(lost, address).status_code == 401


def test_an_answer_of_another_issuer_is_refused(world: World) -> None:
    """Mix-up (RFC 9207): the answer says that it comes from elsewhere."""
    browser = world.browser()
    address = to_provider(browser).replace("iss=http", "iss=https")
    answer = come_back(browser, address)
    assert (answer.status_code, "nother identity provider" in answer.text) == (401, True)


def test_a_refusal_of_the_provider_is_told_and_its_words_are_not_shown(world: World) -> None:
    browser = world.browser()
    state = dict(httpx.QueryParams(urlsplit(to_provider(browser)).query))["state"]
    answer = browser.get(f"/login/oidc/callback?state={state}&error=<script>&error_description=call+0900")
    assert answer.status_code == 401
    assert "let nobody in" in answer.text
    assert "0900" not in answer.text


@pytest.mark.parametrize(
    "query", ["next=https://evil.example", "redirect_uri=https://evil.example/x", "next=//evil"]
)
def test_nobody_is_sent_elsewhere_after_they_signed_in(world: World, query: str) -> None:
    """A link in a mail: the real login page, and after it the attacker's."""
    browser = world.browser()
    begun = browser.get(f"/login/oidc?{query}", follow_redirects=False, headers={"Host": "evil.example"})
    asked = httpx.QueryParams(urlsplit(begun.headers["location"]).query)
    assert asked["redirect_uri"] == f"{ORIGIN}/login/oidc/callback"
    address = str(httpx.get(begun.headers["location"], trust_env=False).headers["location"])
    answer = come_back(browser, f"{address}&{query}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_logging_out_offers_to_do_so_at_the_provider_too(world: World) -> None:
    browser, _ = sign_in(world)
    left = browser.post("/logout", headers={"Origin": ORIGIN})
    assert "/login/oidc/leave" in left.text
    assert me(browser) is None
    away = browser.get("/login/oidc/leave", follow_redirects=False)
    assert away.headers["location"] == f"{world.provider.issuer}/leave?client_id={CLIENT}"


# --- a provider that is not well ---------------------------------------------------------------------


def _server(world: World, tmp_path_factory: pytest.TempPathFactory, **changes: Any) -> World:  # noqa: ANN401 - settings
    told = {"issuer": "http://127.0.0.1:9/realm", "client_id": CLIENT, "default_role": "viewer", **changes}
    runtime = build(
        Settings(data=tmp_path_factory.mktemp("down"), public_url=ORIGIN, oidc=OidcSettings(**told))
    )
    runtime.services.accounts.add_user(SYSTEM, "paul", PASSWORD, Role.ADMIN)
    app = create_app(runtime.services, console=handlers(), templates=template_config("test"))
    return World(IdentityProvider(9), runtime, app, world.portal)


def test_a_provider_that_is_down_is_one_line_and_passwords_still_work(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The provider is down, the fleet is not: the page says so, and an administrator logs in."""
    world = _server(world, tmp_path_factory)
    browser = world.browser()
    answer = browser.get("/login/oidc")
    assert answer.status_code == 502
    assert "no answer" in answer.text
    assert "log in with a password" in answer.text
    form = {"name": "paul", "password": PASSWORD}
    assert browser.post("/login", data=form, headers={"Origin": ORIGIN}).status_code == 200
    assert me(browser)["name"] == "paul"
    world.runtime.services.database.close()


def test_a_provider_that_calls_itself_otherwise_is_none(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The address answers, but for another issuer: its tokens would be another's."""
    world.provider.named = "http://127.0.0.1:1/other"
    other = _server(world, tmp_path_factory, issuer=world.provider.issuer)
    answer = other.browser().get("/login/oidc")
    assert (answer.status_code, "it calls itself" in answer.text) == (502, True)
    other.runtime.services.database.close()


@pytest.mark.parametrize(
    ("part", "status", "body", "text"),
    [
        ("openid-configuration", 503, b"", "it answers 503"),
        ("openid-configuration", 302, b"", "it answers 302"),
        ("openid-configuration", 200, b"<html>", "unreadable answer"),
        ("openid-configuration", 200, b"{}", "unreadable answer"),
        ("openid-configuration", 200, b" " * (2**20 + 1), "without end"),
        ("token", 500, b"", "it answers 500"),
        ("token", 400, b'{"error": "invalid_grant"}', "does not accept"),
        ("token", 200, b'{"access_token": "x"}', "unreadable answer"),
        ("token", 200, b'{"id_token": "x.y.z"}', "does not verify"),
        ("keys", 200, b"{}", "no readable keys"),
        ("keys", 200, b'{"keys": [{"kty": "RSA"}]}', "no readable keys"),
        ("keys", 200, b'{"keys": 7}', "no readable keys"),
    ],
)
def test_a_provider_that_is_not_well_is_told_in_one_line(
    world: World, part: str, status: int, body: bytes, text: str
) -> None:
    """Whatever the provider answers, people read what is wrong; nobody is let in, and nothing is a bug."""
    forgotten(world)
    browser = world.browser()
    if part == "openid-configuration":
        world.provider.spoiled = {part: (status, body)}
        answer = browser.get("/login/oidc", follow_redirects=False)
    else:
        address = to_provider(browser)
        world.provider.spoiled = {part: (status, body)}
        answer = come_back(browser, address)
    assert answer.status_code in (401, 502), answer.text
    assert text in answer.text
    assert me(browser) is None
    world.provider.honest()
    forgotten(world)
    assert me(sign_in(world)[0]) is not None


def forgotten(world: World) -> None:
    """Have everything asked of the provider anew."""
    sign_on = world.runtime.services.single_sign_on
    provider = None if sign_on is None else sign_on._provider
    assert isinstance(provider, OidcProvider)
    provider._found = provider._keys = None


def test_a_provider_may_want_the_secret_in_the_form(world: World) -> None:
    forgotten(world)
    world.provider.by_form = True
    assert me(sign_in(world)[0]) is not None
    world.provider.honest()
    forgotten(world)


def test_a_server_without_a_provider_has_no_button_and_no_addresses(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    runtime = build(Settings(data=tmp_path_factory.mktemp("none")))
    app = create_app(
        runtime.services, console=handlers(), templates=template_config("test"), error_page=error_page
    )
    with TestClient(app) as browser:
        assert "/login/oidc" not in browser.get("/login").text
        for rest in ("", "/callback?state=x&code=y", "/leave"):
            assert browser.get(f"/login/oidc{rest}", follow_redirects=False).status_code == 404
    runtime.services.database.close()


@pytest.mark.parametrize("url", ["ftp://x", "https://", "https://kedge.example/console", "kedge.example"])
def test_a_public_address_that_is_none_is_refused_at_start(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="public URL"):
        Settings(data=tmp_path, public_url=url).check()


def test_a_role_that_is_none_is_refused_at_start(tmp_path: Path) -> None:
    oidc = OidcSettings(issuer="https://sso.example", client_id="x", default_role="king")
    with pytest.raises(SettingsError, match="viewer, operator"):
        build(Settings(data=tmp_path, oidc=oidc))


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"issuer": "http://sso.example"}, "expected https"),
        ({"issuer": "https://user@sso.example"}, "expected https"),
        ({"issuer": "file:///etc/passwd"}, "expected https"),
        ({"issuer": "https://sso.example?x=1"}, "expected https"),
        ({"client_id": ""}, "client id"),
        ({"role_claim": "groups"}, "together"),
        ({"default_role": ""}, "nobody could sign in"),
    ],
)
def test_settings_that_cannot_be_safe_are_refused_at_start(told: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {
        "issuer": "https://sso.example/realm", "client_id": "x", "default_role": "viewer",
    }  # fmt: skip
    OidcSettings(**good).check()
    with pytest.raises(SettingsError, match=text):
        OidcSettings(**{**good, **told}).check()


def test_a_claim_is_found_by_its_name_or_its_path() -> None:
    assert claimed({"groups": ["a", 7, "b"]}, "groups") == ("a", "b")
    assert claimed({"https://x.example/roles": "a"}, "https://x.example/roles") == ("a",)
    assert claimed({"realm": {"roles": ["a"]}}, "realm.roles") == ("a",)
    assert claimed({"realm": ["roles"]}, "realm.roles") == ()
    assert claimed({}, "groups") == ()
