"""The audit log: one entry per change, a chain that no writer forks, and whoever alters it is noticed."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from alembic import command
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from litestar import Litestar
from litestar.testing import TestClient
from sqlalchemy import text
from sqlmodel import select

from fleet.ids import Digest
from postgres import cluster
from server.app import create_app
from server.bootstrap import Runtime, build
from server.client.bundles import Layout
from server.console.routes import handlers, template_config
from server.db.audit_chain import GENESIS, canonical, digest
from server.db.engine import Database
from server.db.migrate import _config, upgrade
from server.db.tables import AuditEntry, Blob, Device
from server.errors import InvalidError, SettingsError
from server.permissions import permissions
from server.services.people.audit import Audit
from server.services.people.audit_links import check_export
from server.services.people.audit_witness import KEY, NOTE, Witness
from server.services.people.roles import SYSTEM, Role
from server.settings import Settings
from sim_devices import TARGET, csr, layout
from trust_world import ManualClock


class Log(NamedTuple):
    """An audit log with its witness."""

    folder: Path
    database: Database
    audit: Audit

    def write(self, *subjects: str, at: float | None = None) -> None:
        """Write one entry per subject, each in a transaction of its own."""
        for subject in subjects:
            with self.database.write() as session:
                self.audit.record(session, SYSTEM, "test.write", subject, after={"to": (1, 0.1, "ü")}, at=at)

    def tamper(self, sql: str) -> None:
        """Do what somebody with the database alone can do."""
        with self.database.engine.begin() as connection:
            connection.execute(text(sql))

    def broken(self) -> str:
        return self.audit.verify().broken


def _log(folder: Path, url: str = "") -> Log:
    database = Database(url or f"sqlite:///{folder / 'log.db'}")
    upgrade(database)
    return Log(folder, database, Audit(database, ManualClock(), Witness(folder, folder / "keys")))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six entries once; each test has a copy."""
    folder = tmp_path_factory.mktemp("written") / "log"
    folder.mkdir()
    made = _log(folder)
    made.write(*"abcdef")
    made.database.close()
    return folder


@pytest.fixture
def log(written: Path, tmp_path: Path) -> Iterator[Log]:
    folder = shutil.copytree(written, tmp_path / "log")
    database = Database(f"sqlite:///{folder / 'log.db'}")
    yield Log(folder, database, Audit(database, ManualClock(), Witness(folder, folder / "keys")))
    database.close()


# --- the chain ---------------------------------------------------------------------------------------


def test_each_entry_holds_the_digest_of_the_one_before(log: Log) -> None:
    assert log.broken() == ""
    rows = list(reversed(log.audit.entries()))
    assert [row.id for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0].previous == GENESIS
    assert [row.previous for row in rows[1:]] == [row.digest for row in rows[:-1]]
    state = log.audit.verify()
    assert (state.entries, state.head, state.digest, state.witnessed) == (6, 6, rows[-1].digest, 6)


def test_the_bytes_of_an_entry_are_plain_json_that_others_can_check() -> None:
    """An auditor checks an export with ten lines of Python; these bytes must therefore never change."""
    entry = {
        "id": 7, "at": 1700000000.25, "actor": "rita", "action": "rollout.pause", "subject": "rollout 7",
        "before": {"state": "running"}, "after": {"state": "paused", "n": [1, 0.1, "ü"]}, "previous": GENESIS,
    }  # fmt: skip
    assert canonical(entry) == (
        b'{"action":"rollout.pause","actor":"rita","after":{"n":[1,0.1,"\\u00fc"],"state":"paused"},'
        b'"at":1700000000.25,"before":{"state":"running"},"id":7,"previous":"' + b"0" * 64 + b'",'
        b'"subject":"rollout 7"}'
    )
    assert digest({**entry, "digest": "ignored"}) == (
        "d535e67863dc503f9f0fe69116fabab854dc3ce00411eb37ea2649c620751b37"
    )


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE audit_entry SET actor = 'mallory' WHERE id = 3", "entry 3: its content"),
        ("UPDATE audit_entry SET after = '{\"to\": [2]}' WHERE id = 3", "entry 3: its content"),
        ("UPDATE audit_entry SET at = at + 1 WHERE id = 1", "entry 1: its content"),
        ("UPDATE audit_entry SET before = '{}' WHERE id = 6", "entry 6: its content"),
        ("DELETE FROM audit_entry WHERE id = 3", "entry 4: the one before it is not entry 2"),
        ("DELETE FROM audit_entry WHERE id = 1", "entry 2: the one before it"),
        ("UPDATE audit_entry SET id = 99 WHERE id = 3", "entry 4: the one before it"),
        ("DELETE FROM audit_entry WHERE id = 6", "entry 6: it is missing at the end"),
        ("DELETE FROM audit_entry", "entry 6: it is missing at the end, the last one is 0"),
        ("DELETE FROM audit_head", "entry 6: it was not added by this server"),
        ("UPDATE audit_head SET entry = 5", "entry 6: it was not added by this server"),
        ("UPDATE audit_head SET digest = 'x'", "entry 6: it was not added by this server"),
    ],
)
def test_what_is_altered_is_named(log: Log, sql: str, said: str) -> None:
    """Somebody with the database changes or removes one entry."""
    log.tamper(sql)
    assert log.broken().startswith(said)


def _forged(log: Log, number: int, **changes: object) -> None:
    """Rewrite the log from an entry on, digests and head included: all that the database alone allows."""
    rows = [
        {name: getattr(row, name) for name in AuditEntry.model_fields}
        for row in reversed(log.audit.entries())
    ]
    previous = GENESIS
    with log.database.write() as session:
        for row in rows:
            forged = {**row, **(changes if row["id"] == number else {}), "previous": previous}
            previous = digest(forged)
            session.merge(AuditEntry(**{**forged, "digest": previous}))
    log.tamper(f"UPDATE audit_head SET digest = '{previous}'")


def test_a_log_that_was_written_anew_from_some_entry_on_is_noticed(log: Log) -> None:
    """A thorough forger changes entry 2 and every digest after it: a whole chain, but not the one noted."""
    _forged(log, 2, actor="nobody")
    assert log.broken() == "entry 6: it was noted outside the database, and is not there as it was"


def test_entries_cut_off_at_the_end_are_noticed_even_when_the_head_is_set_back(log: Log) -> None:
    """An intruder removes the last entries, about themselves, and hides the hole; the server goes on."""
    rows = log.audit.entries()
    log.tamper("DELETE FROM audit_entry WHERE id > 4")
    log.tamper(f"UPDATE audit_head SET entry = 4, digest = '{rows[2].digest}'")
    said = "entry 6: it was noted outside the database, and is not there as it was"
    assert log.broken() == said
    log.write("g", "h", "i", "j")
    assert log.broken() == said


def test_a_note_that_was_forged_counts_as_none(log: Log) -> None:
    """Somebody writes a note of their own beside the log; without the key, it is not signed."""
    note = log.folder / NOTE
    told = json.loads(note.read_text())
    note.write_text(json.dumps({**told, "entry": 4}))
    assert log.audit.verify().witnessed == 0
    evil = Ed25519PrivateKey.generate()
    told["key"] = evil.public_key().public_bytes_raw().hex()
    note.write_text(json.dumps(told))
    assert log.audit.verify().witnessed == 0
    note.write_text("not even JSON")
    assert log.audit.verify().witnessed == 0


def test_a_log_whose_note_is_gone_says_so_itself(log: Log) -> None:
    """After a restore from a backup the owner removes the note: from then on a new one is kept."""
    (log.folder / NOTE).unlink()
    log.audit.begin(SYSTEM)
    entry = log.audit.entries()[0]
    assert (entry.action, entry.after) == ("audit.witness", {"entries": 6})
    log.audit.begin(SYSTEM)
    assert log.audit.entries()[0].id == entry.id
    assert log.audit.verify().witnessed == 7


def test_a_full_disk_keeps_the_note_behind_and_no_change_back(log: Log) -> None:
    """The note cannot be written: the change is done all the same, and the next note covers it."""
    (log.folder / NOTE).unlink()
    (log.folder / NOTE).mkdir()
    (log.folder / NOTE / "in-the-way").touch()
    with pytest.raises(IsADirectoryError):
        log.write("g")
    (log.folder / NOTE / "in-the-way").unlink()
    (log.folder / NOTE).rmdir()
    log.write("h")
    assert (log.broken(), log.audit.verify().witnessed) == ("", 8)


@pytest.mark.parametrize("content", [b"no key", b""])
def test_a_spoiled_key_is_named_at_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY).write_bytes(content)
    with pytest.raises(SettingsError, match=KEY):
        Witness(tmp_path, tmp_path)


def test_a_transaction_that_fails_leaves_no_entry(log: Log) -> None:
    def fail() -> None:
        with log.database.write() as session:
            log.audit.record(session, SYSTEM, "test.write", "never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    log.write("g")
    assert log.audit.verify().head == 7


def _crowd(logs: list[Log], each: int) -> None:
    """Have several writers write at once."""
    problems: list[BaseException] = []

    def work(log: Log, who: int) -> None:
        try:
            log.write(*(f"{who}-{number}" for number in range(each)))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            problems.append(error)

    threads = [threading.Thread(target=work, args=(log, who)) for who, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_writers_at_once_do_not_fork_the_chain(tmp_path: Path) -> None:
    """Two servers, by mistake or by a takeover, and several threads in each, on SQLite."""
    logs = [_log(tmp_path), _log(tmp_path)]
    _crowd([*logs, *logs], 10)
    state = logs[0].audit.verify()
    assert (state.broken, state.entries, state.witnessed) == ("", 40, 40)
    for log in logs:
        log.database.close()


def test_writers_at_once_do_not_fork_the_chain_on_postgresql(tmp_path: Path) -> None:
    """Several API replicas write to one PostgreSQL; each entry gets its place, one after the other."""
    pytest.importorskip(
        "psycopg", reason="the postgres extra is not installed: pip install 'kedge[postgres]'"
    )
    with cluster() as url:
        address = Settings(data=tmp_path, database=url).database_url
        logs = [_log(tmp_path / str(number), address) for number in range(2)]
        _crowd([*logs, *logs], 10)
        state = logs[0].audit.verify()
        assert (state.broken, state.entries) == ("", 40)
        logs[0].tamper("DELETE FROM audit_entry WHERE id = 20")
        assert logs[1].broken().startswith("entry 21: the one before it")
        for log in logs:
            log.database.close()


def test_the_log_of_an_older_server_becomes_a_chain(tmp_path: Path) -> None:
    """Entries that were written before there was a chain are linked when the server is brought up to date."""
    database = Database(f"sqlite:///{tmp_path / 'old.db'}")
    with database.engine.connect() as connection:
        command.upgrade(_config(connection), "0005")
        values = "(3, 1.5, 'rita', 'rollout.pause', 'rollout 1', NULL, '{\"state\": \"paused\"}')"
        columns = "(id, at, actor, action, subject, before, after)"
        connection.execute(text(f"INSERT INTO audit_entry {columns} VALUES {values}"))
        connection.execute(
            text(f"INSERT INTO audit_entry {columns} VALUES (7, 2.5, 'kedge', 'x', 'y', 'null', NULL)")
        )
        connection.commit()
    upgrade(database)
    made = Log(tmp_path, database, Audit(database, ManualClock(), Witness(tmp_path, tmp_path / "keys")))
    assert (made.broken(), made.audit.verify().head) == ("", 7)
    made.write("first")
    assert [row.id for row in made.audit.entries()] == [8, 7, 3]
    made.tamper("UPDATE audit_entry SET actor = 'eve' WHERE id = 3")
    assert made.broken().startswith("entry 3")
    database.close()


# --- an export ---------------------------------------------------------------------------------------


def test_an_export_is_checked_without_a_server(log: Log) -> None:
    lines = list(log.audit.export())
    assert len(lines) == 7
    found = check_export(lines)
    assert (found.broken, found.entries) == ("", 6)
    assert found.key == json.loads((log.folder / NOTE).read_text())["key"]
    assert check_export(lines[:-1]).key == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda lines: [*lines[:2], lines[2].replace(b"kedge", b"other"), *lines[3:]],
            "entry 3: its content",
        ),
        (lambda lines: [*lines[:2], *lines[3:]], "entry 4: the one before it"),
        (lambda lines: [*lines[:5], lines[6]], "entry 6: it was signed for"),
        (lambda lines: [*lines[:6], lines[6].replace(b'"entry":6', b'"entry":5')], "the end: its signature"),
    ],
)
def test_an_export_that_was_altered_is_found_out(
    log: Log, change: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    assert check_export(change(list(log.audit.export()))).broken.startswith(said)


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"head": {}}', b'{"head": 1}'])
def test_what_is_no_export_is_said(line: bytes) -> None:
    with pytest.raises(InvalidError, match="line 1"):
        check_export([line])


# --- every change leaves one entry -------------------------------------------------------------------

#: Changing routes that leave none, and why.
NONE: Final = {
    "PUT /api/v1/blobs/{digest}": "a blob is nothing until a release names it",
    "POST /api/v1/rollouts/preview": "it only computes",
    "POST /api/v1/renew": "only once half of a certificate's life is over: tests/contract/test_renewal.py",
}
EVERY: Final = "correct horse battery"


#: Changing routes that need what only a ceremony or a device can sign, and the entry that they leave.
SIGNED_ELSEWHERE: Final = {
    "POST /api/v1/keys/{role_name}/prepare": "key.prepare",
    "POST /api/v1/trust/metadata": "trust.adopt",
    "POST /api/v1/projects/{name}/signatures": "project.sign",
    "DELETE /api/v1/projects/{name}/proposal": "project.discard",
    "POST /api/v1/kits/reports": "kit.collect",
}


class Shop(NamedTuple):
    """A server whose administrator does one thing after the other."""

    runtime: Runtime
    client: TestClient[Litestar]
    folder: Path

    def entries(self) -> int:
        return self.runtime.services.audit.verify().entries

    def bundle(self, name: str) -> str:
        found = Layout(layout(self.folder / name, weights=name.encode()))
        for blob in found.digests():
            self.runtime.services.releases.put_blob(blob, [found.path(blob).read_bytes()])
        return str(found.bundle.digest)

    def orphan(self) -> dict[str, float]:
        """Store what no release names; return how old what is collected must be."""
        self.runtime.services.releases.put_blob(Digest.of(b"orphan"), [b"orphan"])
        with self.runtime.services.database.write() as session:
            row = session.get_one(Blob, Digest.of(b"orphan"))
            row.created_at = 1.0
            session.add(row)
        return {"older_than": 3600.0}

    def enrol(self, name: str, *, approval: bool = False) -> dict[str, Any]:
        """Return what a new device asks for."""
        _, token = self.runtime.services.claims.create(SYSTEM, approval=approval)
        return {"claim": token.secret, "csr_pem": csr(), "name": name, "target": TARGET}

    def device(self, name: str) -> str:
        """Add a device by hand; return its name."""
        with self.runtime.services.database.write() as session:
            session.add(Device(id=name, target=TARGET, enrolled_at=1.0))
        return name

    def another(self) -> str:
        """Add one more device by hand; return its name."""
        with self.runtime.services.database.read() as session:
            return self.device(f"dev-x{len(session.exec(select(Device)).all())}")

    def waits(self, name: str) -> dict[str, str]:
        """Have a device wait for a person; return what is to be decided on."""
        answer = self.client.post("/api/v1/enrol", json=self.enrol(name, approval=True))
        assert answer.status_code == 202, answer.text
        return {"fingerprint": answer.json()["fingerprint"]}

    def ticked(self, name: str) -> dict[str, str]:
        """Have a device wait for a person; return the form that lets in all that are ticked."""
        return {"decision": "approve", "sure": "1", "chosen": f"{self.waits(name)['fingerprint']}:{name}"}

    def rollout(self, *, approve: bool = False) -> str:
        """Plan a rollout of the first release; return the beginning of its address."""
        body = {"release": 1, "approve": approve, "selection": {"devices": [self.another()]}}
        answer = self.client.post("/api/v1/rollouts", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def token(self) -> str:
        """Make a token; return its id."""
        return str(self.runtime.services.accounts.tokens.add(SYSTEM, "x", Role.VIEWER)[0].id)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    runtime = build(Settings(data=folder / "data"))
    assert runtime.broker is not None
    runtime.broker.start()
    runtime.connection.start()
    runtime.connection.wait_connected(30)
    app = create_app(runtime.services, console=handlers(), templates=template_config("test"))
    runtime.services.accounts.add_user(SYSTEM, "boss", EVERY, Role.ADMIN)
    with TestClient(app, raise_server_exceptions=False, base_url="http://testserver.local") as client:
        client.headers["Origin"] = "http://testserver.local"
        yield Shop(runtime, client, folder)
    runtime.stop()


class Step(NamedTuple):
    """One changing request: where, and what it says, made when it is its turn."""

    route: str
    path: Callable[[Shop], str]
    json: Callable[[Shop], Any] | None = None
    form: Callable[[Shop], Any] | None = None


def _at(path: str) -> Callable[[Shop], str]:
    return lambda _: path


_POOL: Final = {"name": "p", "url": "grpc://127.0.0.1:9", "region": "eu", "models": {"digits": "d"}}
_API: Final = "/api/v1"
#: In this order, for one needs what another made.
STEPS: Final = (
    Step("POST /api/v1/login", _at(f"{_API}/login"), lambda _: {"name": "boss", "password": EVERY}),
    Step(
        "POST /api/v1/users",
        _at(f"{_API}/users"),
        lambda _: {"name": "ann", "password": EVERY, "role": "viewer"},
    ),
    Step("PATCH /api/v1/users/{name}", _at(f"{_API}/users/ann"), lambda _: {"role": "operator"}),
    Step("POST /api/v1/tokens", _at(f"{_API}/tokens"), lambda _: {"name": "t", "role": "viewer"}),
    Step("DELETE /api/v1/tokens/{token_id}", lambda shop: f"{_API}/tokens/{shop.token()}"),
    Step("POST /api/v1/claims", _at(f"{_API}/claims"), lambda _: {}),
    Step("DELETE /api/v1/claims/{claim_id}", _at(f"{_API}/claims/1")),
    Step("POST /api/v1/enrol", _at(f"{_API}/enrol"), lambda shop: shop.enrol("dev-1")),
    Step(
        "PUT /api/v1/devices/{device_id}/labels",
        _at(f"{_API}/devices/dev-1/labels"),
        lambda _: {"labels": {"a": "b"}},
    ),
    Step("POST /api/v1/devices/{device_id}/flush", _at(f"{_API}/devices/dev-1/flush")),
    Step("POST /devices/{device_id}/flush", _at("/devices/dev-1/flush")),
    Step(
        "POST /api/v1/device-keys",
        _at(f"{_API}/device-keys"),
        lambda _: {"keys": [{"fingerprint": "a" * 64, "id": "dev-k", "target": TARGET}]},
    ),
    Step("DELETE /api/v1/device-keys/{fingerprint}", _at(f"{_API}/device-keys/{'a' * 64}")),
    Step(
        "POST /api/v1/pending/{device_id}/approve",
        _at(f"{_API}/pending/dev-2/approve"),
        lambda shop: shop.waits("dev-2"),
    ),
    Step(
        "POST /api/v1/pending/{device_id}/reject",
        _at(f"{_API}/pending/dev-3/reject"),
        lambda shop: shop.waits("dev-3"),
    ),
    Step(
        "POST /pending/{device_id}/{decision}",
        _at("/pending/dev-4/approve"),
        form=lambda shop: shop.waits("dev-4"),
    ),
    Step("POST /pending", _at("/pending"), form=lambda shop: shop.ticked("dev-10")),
    Step(
        "POST /devices/{device_id}/labels",
        _at("/devices/dev-1/labels"),
        form=lambda _: {"labels": "a=c", "seen": "a=b"},
    ),
    Step("POST /api/v1/releases", _at(f"{_API}/releases"), lambda shop: {"bundles": [shop.bundle("one")]}),
    Step(
        "POST /api/v1/rollouts",
        _at(f"{_API}/rollouts"),
        lambda shop: {"release": 1, "selection": {"devices": [shop.another()]}, "approve": True},
    ),
    Step(
        "POST /api/v1/rollouts/{rollout_id}/{command}",
        lambda shop: f"{_API}/rollouts/{shop.rollout()}/approve",
        lambda _: {},
    ),
    Step(
        "POST /rollouts/new",
        _at("/rollouts/new"),
        form=lambda shop: {"release": "1", "approve": "1", "devices": shop.another()},
    ),
    Step("POST /rollouts/{rollout_id}/{move}", lambda shop: f"/rollouts/{shop.rollout(approve=True)}/abort"),
    Step("POST /api/v1/kits", _at(f"{_API}/kits"), lambda _: {}),
    Step("POST /api/v1/pools", _at(f"{_API}/pools"), lambda _: _POOL),
    Step("PATCH /api/v1/pools/{name}", _at(f"{_API}/pools/p"), lambda _: {"state": "draining"}),
    Step("DELETE /api/v1/pools/{name}", _at(f"{_API}/pools/p")),
    Step("PUT /api/v1/offload/policy", _at(f"{_API}/offload/policy"), lambda _: {"regions": ["eu"]}),
    Step("POST /api/v1/keys/{role_name}/rotate", _at(f"{_API}/keys/timestamp/rotate")),
    Step(
        "POST /api/v1/releases/{release_id}/withdraw",
        _at(f"{_API}/releases/1/withdraw"),
        lambda _: {"reason": "old"},
    ),
    Step("POST /api/v1/blobs/collect", _at(f"{_API}/blobs/collect"), lambda shop: shop.orphan()),
    Step("POST /people", _at("/people"), form=lambda _: {"name": "bob", "role": "viewer"}),
    Step("POST /people/{name}/role", _at("/people/bob/role"), form=lambda _: {"role": "operator"}),
    Step("POST /people/{name}/disable", _at("/people/bob/disable")),
    Step("POST /people/{name}/enable", _at("/people/bob/enable")),
    Step(
        "POST /people/tokens",
        _at("/people/tokens"),
        form=lambda _: {"name": "t", "role": "viewer", "days": "1"},
    ),
    Step("POST /people/tokens/{token_id}/revoke", lambda shop: f"/people/tokens/{shop.token()}/revoke"),
    Step(
        "POST /devices/{device_id}/decommission", lambda shop: f"/devices/{shop.device('dev-5')}/decommission"
    ),
    Step(
        "POST /api/v1/devices/{device_id}/decommission",
        lambda shop: f"{_API}/devices/{shop.device('dev-6')}/decommission",
        lambda _: {},
    ),
    Step("POST /devices/{device_id}/revoke", lambda shop: f"/devices/{shop.device('dev-7')}/revoke"),
    Step("DELETE /api/v1/devices/{device_id}", lambda shop: f"{_API}/devices/{shop.device('dev-8')}"),
    Step("POST /logout", _at("/logout")),
    Step("POST /login", _at("/login"), form=lambda _: {"name": "boss", "password": EVERY}),
    Step("POST /api/v1/logout", _at(f"{_API}/logout")),
    Step("POST /api/v1/login", _at(f"{_API}/login"), lambda _: {"name": "boss", "password": EVERY}),
    Step(
        "POST /api/v1/me/password", _at(f"{_API}/me/password"), lambda _: {"old": EVERY, "new": EVERY + "!"}
    ),
)


def test_every_changing_route_leaves_exactly_one_entry(shop: Shop) -> None:
    """Whatever is changed, by the API or a page, is in the log once. A new route is a new step here."""
    changing = {f"{x.method} {x.path}" for x in permissions() if x.method not in ("GET", "HEAD")}
    known = {step.route for step in STEPS} | NONE.keys() | SIGNED_ELSEWHERE.keys()
    assert changing == known, "add the new route to STEPS, with a request that changes something"
    for step in STEPS:
        path = step.path(shop)
        body = {"json": step.json(shop)} if step.json else {"data": step.form(shop)} if step.form else {}
        before = shop.entries()
        method = step.route.partition(" ")[0]
        answer = shop.client.request(method, path, follow_redirects=False, **body)
        assert answer.status_code < 400, (step.route, answer.text)
        state = shop.runtime.services.audit.verify()
        actions = [entry.action for entry in shop.runtime.services.audit.entries(limit=3)]
        assert (state.broken, state.entries - before) == ("", 1), (step.route, actions)


@pytest.mark.parametrize("action", SIGNED_ELSEWHERE.values())
def test_what_is_signed_elsewhere_is_recorded_too(action: str) -> None:
    server = Path(__file__).resolve().parents[2] / "server"
    written = "".join(path.read_text() for path in server.rglob("*.py"))
    assert re.search(rf'record\(\s*session, \S+, "{action}"', written)
