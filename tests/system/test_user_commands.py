"""People by the command line: added, disabled, and let in again by whoever owns the data folder."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from processes import KEDGE
from sim_devices import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    try:
        yield made.start()
    finally:
        made.kill()


def user(server: Server, *arguments: str, code: int = 0) -> Any:  # noqa: ANN401 - JSON
    """Run `kedge user`; return the JSON that it prints, or the one line of its error."""
    return run(server, "user", *arguments, code=code)


def run(server: Server, *arguments: str, code: int = 0, token: str = "") -> Any:  # noqa: ANN401 - JSON
    """Run a command as the administrator, or with a token; return its JSON, or the one line of its error."""
    command = [KEDGE, *arguments, "--json"]
    environment = {**os.environ, **server.environment()}
    if token:
        environment["KEDGE_TOKEN"] = token
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr.strip() or json.loads(done.stdout)


def log_in(server: Server, name: str, password: str) -> httpx.Client | None:
    """Return a client with the person's session, or None when the server refuses the password."""
    client = httpx.Client(base_url=f"{server.served.url}/api/v1", trust_env=False)
    origin = {"Origin": server.served.url}
    answer = client.post("/login", json={"name": name, "password": password}, headers=origin)
    if answer.status_code == 401:
        client.close()
        return None
    assert answer.is_success, answer.text
    return client


def test_a_person_is_added_disabled_and_enabled(server: Server) -> None:
    made = user(server, "add", "rita", "--role", "operator")
    assert (made["name"], made["role"], made["disabled"]) == ("rita", "operator", False)
    session = log_in(server, "rita", made["password"])
    assert session is not None
    with contextlib.closing(session):
        assert session.get("/me").json() == {"name": "rita", "role": "operator"}
        assert user(server, "disable", "rita")["disabled"]
        assert session.get("/me").status_code == 401
    assert log_in(server, "rita", made["password"]) is None
    assert {x["name"]: x["disabled"] for x in user(server, "list")["items"]}["rita"]
    assert not user(server, "enable", "rita")["disabled"]
    again = log_in(server, "rita", made["password"])
    assert again is not None
    again.close()
    assert "exists already" in user(server, "add", "rita", code=2)


def test_the_owner_of_the_data_folder_recovers_a_lost_administrator(server: Server) -> None:
    """Nobody knows the password any more; a thief who does is thrown out by the same command."""
    thief = log_in(server, "admin", server.served.password)
    assert thief is not None
    data = ["--data", str(server.folder / "data")]
    with contextlib.closing(thief):
        found = user(server, "reset", "admin", *data, "--with-token")
        assert thief.get("/me").status_code == 401
    assert log_in(server, "admin", server.served.password) is None
    session = log_in(server, "admin", found["password"])
    assert session is not None
    with contextlib.closing(session):
        entry = session.get("/audit", params={"subject": "user admin"}).json()[0]
    assert entry["action"] == "user.recover"
    assert entry["actor"].startswith("data folder (uid ")
    header = {"Authorization": f"Bearer {found['token']}"}
    me = httpx.get(f"{server.served.url}/api/v1/me", headers=header, trust_env=False).json()
    assert me == {"name": "token:admin", "role": "admin"}
    assert user(server, "reset", "admin", *data)["token"] is None


def test_a_disabled_person_is_let_in_again_by_a_reset(server: Server) -> None:
    user(server, "add", "sam")
    user(server, "disable", "sam")
    found = user(server, "reset", "sam", "--data", str(server.folder / "data"))
    session = log_in(server, "sam", found["password"])
    assert session is not None
    session.close()


def test_a_reset_that_cannot_be_is_one_line_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    """A wrong folder must not become a new, empty server; a wrong name is told the right ones."""
    said = user(server, "reset", "admin", "--data", str(tmp_path), code=2)
    assert said == f"error: {tmp_path / 'kedge.db'}: expected a server's database, there is none"
    assert list(tmp_path.iterdir()) == []
    said = user(server, "reset", "nobody", "--data", str(server.folder / "data"), code=2)
    assert said.startswith("error: user nobody: expected one of admin")


def test_a_token_of_scopes_is_made_used_and_revoked(server: Server) -> None:
    """CI gets a token that reads two kinds of things: it does, and nothing else; then it is revoked."""
    scopes = ["--scope", "devices:read label=site=north", "--scope", "audit:read"]
    made = run(server, "token", "add", "ci", *scopes, "--days", "2")
    assert made["expires_at"] - made["created_at"] == 2 * 86400
    assert run(server, "device", "list", token=made["secret"])["items"] == []
    assert "scopes" in run(server, "rollout", "list", token=made["secret"], code=2)
    listed = {x["name"]: x for x in run(server, "token", "list")["items"]}
    assert listed["ci"]["scopes"][0] == {"scope": "devices:read", "labels": {"site": "north"}}
    assert listed["ci"]["last_used_at"] is not None
    assert listed["first-start"]["secret"] is None
    run(server, "token", "revoke", str(made["id"]))
    assert "missing, expired or revoked" in run(server, "device", "list", token=made["secret"], code=2)
    assert "no longer" in run(server, "token", "add", "x", "--role", "viewer", "--never-expires", code=2)
    assert "expected one of metrics:read" in run(server, "token", "add", "x", "--scope", "all", code=2)
    assert "either a role or scopes" in run(server, "token", "add", "x", code=2)


def test_the_audit_log_is_listed_checked_and_exported(server: Server, tmp_path: Path) -> None:
    """An auditor takes the log out, checks it at home, and finds out when a line is changed on the way."""
    assert run(server, "audit", "verify")["broken"] == ""
    newest = run(server, "audit", "list", "--limit", "1")["items"][0]
    file = tmp_path / "audit.jsonl"
    run(server, "audit", "export", "--output", str(file))
    found = run(server, "audit", "verify", str(file))
    assert (found["broken"], found["entries"] >= newest["id"], len(found["key"])) == ("", True, 64)
    file.write_text(file.read_text().replace('"actor":"kedge"', '"actor":"nobody"', 1))
    broken = run(server, "audit", "verify", str(file), code=2)
    assert broken["broken"] == "entry 1: its content is not what was written"
    plain = subprocess.run(
        [KEDGE, "audit", "verify", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("error: audit log: not whole: entry 1")
