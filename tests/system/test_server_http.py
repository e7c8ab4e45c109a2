"""The API over HTTP: what other sites may not do, and how errors look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from litestar import Litestar, get
from litestar.testing import TestClient

from server.api.auth import COOKIE
from server.api.deps import VIEWER, ServicesDep
from server.app import HEADERS, create_app
from server.bootstrap import Runtime, build
from server.console.routes import handlers, template_config
from server.services.people.roles import SYSTEM, Role
from server.settings import Settings

PASSWORD = "correct horse battery"


@get("/api/v1/bug", opt=VIEWER, sync_to_thread=False)
def bug(services: ServicesDep) -> None:
    """Fail in a way that nobody foresaw."""
    raise RuntimeError(f"the secret is in {services.settings.data}")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    made = build(Settings(data=tmp_path_factory.mktemp("data")))
    for role in Role:
        made.services.accounts.add_user(SYSTEM, f"the-{role.value}", PASSWORD, role)
    yield made
    made.services.database.close()


@pytest.fixture(scope="module")
def app(runtime: Runtime) -> Litestar:
    return create_app(runtime.services, console=(*handlers(), bug), templates=template_config("test"))


@pytest.fixture
def client(app: Litestar) -> Iterator[TestClient[Litestar]]:
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="module")
def tokens(runtime: Runtime) -> dict[Role, dict[str, str]]:
    secrets = {role: runtime.services.accounts.tokens.add(SYSTEM, role.value, role)[1] for role in Role}
    return {role: {"Authorization": f"Bearer {secret}"} for role, secret in secrets.items()}


def _log_in(client: TestClient[Litestar], name: str = "the-operator") -> None:
    answer = client.post(
        "/api/v1/login",
        json={"name": name, "password": PASSWORD},
        headers={"Origin": "http://testserver.local"},
    )
    assert answer.status_code == 204, answer.text


def test_the_cookie_is_out_of_scripts_and_other_sites_reach(client: TestClient[Litestar]) -> None:
    answer = client.post(
        "/api/v1/login",
        json={"name": "the-viewer", "password": PASSWORD},
        headers={"Origin": "http://testserver.local"},
    )
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert client.get("/api/v1/me").json() == {"name": "the-viewer", "role": "viewer"}
    client.post("/api/v1/logout", headers={"Origin": "http://testserver.local"})
    client.cookies.set(COOKIE, answer.cookies[COOKIE])
    assert client.get("/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://testserver.local"},
        {"Origin": "http://testserver.local.evil.example"},
    ],
)
def test_another_site_cannot_make_a_browser_act(
    client: TestClient[Litestar], headers: dict[str, str]
) -> None:
    """An operator who is logged in visits a page that posts a form to the server."""
    _log_in(client)
    answer = client.post("/api/v1/claims", json={}, headers=headers)
    assert answer.status_code == 403, answer.text
    assert (
        client.post("/api/v1/claims", json={}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 201
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/v1/nothing", None, 404),
        ("GET", "/api/v1/devices/nobody", None, 404),
        ("DELETE", "/api/v1/devices", None, 405),
        ("GET", "/api/v1/devices?limit=0", None, 400),
        ("GET", "/api/v1/devices?limit=9999", None, 400),
        ("GET", "/api/v1/devices?label=nonsense", None, 422),
        ("POST", "/api/v1/claims", {"quota": "many"}, 400),
        ("POST", "/api/v1/claims", {"quota": 0}, 422),
        ("POST", "/api/v1/claims", {"unknown": 1}, 400),
        ("POST", "/api/v1/releases", {"bundles": []}, 422),
        ("POST", "/api/v1/releases", {"bundles": ["sha256:nonsense"]}, 422),
        ("POST", "/api/v1/rollouts", {"release": 99}, 404),
        ("POST", "/api/v1/rollouts/1/explode", {}, 422),
        ("POST", "/api/v1/rollouts/1/pause", {}, 404),
        ("PUT", "/api/v1/blobs/" + "sha256:" + "0" * 64, None, 422),
        ("POST", "/api/v1/login", {"name": "x", "password": "y" * 2**20}, 413),
    ],
)
def test_errors_are_problem_documents(
    client: TestClient[Litestar],
    tokens: dict[Role, dict[str, str]],
    method: str,
    path: str,
    body: object,
    status: int,
) -> None:
    headers = {**tokens[Role.ADMIN], "Origin": "http://testserver.local"}
    answer = client.request(method, path, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]


def test_a_bug_tells_the_caller_nothing_of_the_inside(
    client: TestClient[Litestar], tokens: dict[Role, dict[str, str]]
) -> None:
    answer = client.get("/api/v1/bug", headers=tokens[Role.VIEWER])
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_every_answer_carries_the_security_headers(client: TestClient[Litestar]) -> None:
    for path in ("/api/v1/health", "/login", "/nothing", "/api/v1/me"):
        answer = client.get(path, follow_redirects=False)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (path, name)
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_every_operation_of_the_api_is_described(
    client: TestClient[Litestar], tokens: dict[Role, dict[str, str]]
) -> None:
    schema = client.get("/api/openapi.json", headers=tokens[Role.VIEWER]).json()
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)
    assert client.get("/api/openapi.json").status_code == 401


def test_a_healthy_server_says_so_and_an_unhealthy_one_too(
    runtime: Runtime, client: TestClient[Litestar]
) -> None:
    """Neither broker nor workers were started here."""
    answer = client.get("/api/v1/health")
    assert answer.status_code == 503
    parts = {part["name"]: part["ok"] for part in answer.json()["parts"]}
    assert parts["database"]
    assert not parts["broker"]
    assert "detail" not in answer.text
    assert replace(runtime.services).settings.data.name not in answer.text


def test_no_secret_leaves_by_the_api(
    client: TestClient[Litestar], tokens: dict[Role, dict[str, str]]
) -> None:
    for path in ("/api/v1/users", "/api/v1/tokens", "/api/v1/claims", "/api/v1/audit", "/api/v1/keys"):
        answer = client.get(path, headers=tokens[Role.ADMIN])
        assert answer.status_code == 200
        assert "hash" not in answer.text
        assert "argon2" not in answer.text
        assert all(row.get("secret") is None and row.get("token") is None for row in answer.json())


def test_metrics_need_a_token(client: TestClient[Litestar], tokens: dict[Role, dict[str, str]]) -> None:
    assert client.get("/metrics").status_code == 401
    text = client.get("/metrics", headers=tokens[Role.VIEWER]).text
    assert 'kedge_part_up{part="database"} 1.0' in text
