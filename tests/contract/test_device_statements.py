"""What a device says with its signature: the agent's end and the server's, over a broker in memory."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Timestamp

from device_agent.adapters import device_key
from device_agent.adapters.clock import SystemClock
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import MqttFetcher
from device_agent.errors import StateError
from device_agent.stating import PAUSE, Statements
from fake_link import FakeLink
from fleet.errors import TrustError
from fleet.ids import DeviceId, Digest
from fleet.trust import policy, proof
from fleet.trust.repository import signed_file
from fleet.wire import codec, statement, topics
from fleet.wire.enrolment import public_pem
from fleet.wire.messages import AttackIndicator, Hello, ModelSlot, SignedStatement, Statement
from server.console.views import devices, needs
from server.db.tables import Device
from server.ports.messaging import Incoming
from server.services.identity.statements import Said, said
from server.services.trust.keys import KeyFolder
from server.services.trust.signing import SigningService
from server_parts import Parts, parts
from sim_devices import TARGET
from trust_world import START

DEVICE = DeviceId("camera-1")
TOPIC = topics.manifest(DEVICE)


class Hands(SystemClock):
    """Stands still until it is moved."""

    seconds = 1000.0

    def monotonic(self) -> float:
        """Return the time that was set."""
        return self.seconds

    def time(self) -> float:
        """Return the time that was set."""
        return START + self.seconds


def hello(version: int = 0, active: str = "") -> Hello:
    slots = (
        (ModelSlot(model="digits", active=active, active_version="1", release_counter=3),) if active else ()
    )
    return Hello(
        boot_id="b1", agent_version="1", target=TARGET, time=0.0, monotonic=0.0, slots=slots,
        assignment_version=version,
    )  # fmt: skip


class Bench(NamedTuple):
    """A server, and a device that is enrolled there."""

    kedge: Parts
    clock: Hands
    link: FakeLink
    folder: Path

    def agent(self, key: Callable[[bytes], bytes] | None = None) -> Statements:
        """Start the agent's end, again perhaps."""
        signer = key or device_key.signer(self.folder / "key.pem")
        believed = lambda: policy.clock(self.kedge.clock.wall(), None)  # noqa: E731 - the wiring has it so
        return Statements(DEVICE, self.folder / "statements.json", signer, self.link, self.clock, believed)

    def sent(self) -> list[SignedStatement]:
        """Return what the device has published so far."""
        published = [data for topic, data in self.kedge.broker.published if topic == TOPIC]
        return [msgspec.msgpack.decode(data, type=SignedStatement) for data in published]

    def say(self, agent: Statements, told: Hello | None = None) -> SignedStatement:
        """Have the agent say something, and return what it published."""
        self.clock.seconds += PAUSE
        agent.changed()
        agent.send_due(lambda: told or hello())
        return self.sent()[-1]

    def hear(self, signed: SignedStatement) -> Said:
        """Have the server take it in, and return what it then knows."""
        self.kedge.ingest.handle([Incoming(TOPIC, codec.encode(signed))])
        with self.kedge.database.read() as session:
            found = said(session, DEVICE)
        assert found is not None
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    kedge = parts(tmp_path / "server")
    key = device_key.make(tmp_path / "key.pem")
    with kedge.database.write() as session:
        public = public_pem(key.public_key())
        session.add(Device(id=DEVICE, target=TARGET, enrolled_at=START, identity_key=public))
    return Bench(kedge, Hands(), kedge.broker.link(DEVICE), tmp_path)


def test_the_server_keeps_what_the_device_has_signed(bench: Bench) -> None:
    found = bench.hear(bench.say(bench.agent(), hello(version=4, active=str(Digest.of(b"x")))))
    assert found.statement is not None
    assert found.statement.assignment_version == 4
    assert [(x.model, x.bundle, x.release_counter) for x in found.statement.models] == [
        ("digits", str(Digest.of(b"x")), 3)
    ]
    assert (found.row.badly_signed, found.row.attack_since) == (0, None)
    assert found.row.received_at == bench.kedge.clock.now()


def test_a_recording_never_replaces_what_is_newer(bench: Bench) -> None:
    """The broker plays an old statement back, in which the device still ran the model before."""
    agent = bench.agent()
    old, new = bench.say(agent, hello(version=1)), bench.say(agent, hello(version=2))
    bench.hear(new)
    found = bench.hear(old)
    assert found.statement is not None
    assert found.statement.assignment_version == 2
    assert found.row.badly_signed == 0


def test_the_numbers_go_on_after_a_restart_and_after_the_disk_was_put_back(bench: Bench) -> None:
    """Even with its memory of statements gone, nothing that a device says is taken for old."""
    first = bench.hear(bench.say(bench.agent())).row.sequence
    kept = (bench.folder / "statements.json").read_bytes()
    second = bench.hear(bench.say(bench.agent())).row.sequence
    (bench.folder / "statements.json").write_bytes(kept)
    bench.kedge.clock.seconds += 60
    third = bench.hear(bench.say(bench.agent())).row.sequence
    (bench.folder / "statements.json").write_bytes(b"not json")
    bench.kedge.clock.seconds += 60
    fourth = bench.hear(bench.say(bench.agent())).row.sequence
    assert first < second < third < fourth


@pytest.mark.parametrize("how", ["another key", "unsigned", "another device", "altered", "no statement"])
def test_what_the_device_has_not_signed_is_counted_and_changes_nothing(bench: Bench, how: str) -> None:
    """Whoever owns the broker speaks in the device's name; the server keeps what the device has signed."""
    key = device_key.load(bench.folder / "key.pem")
    good = bench.say(bench.agent())
    bench.hear(good)

    def signed(body: bytes, device: DeviceId = DEVICE) -> SignedStatement:
        now = bench.kedge.clock.wall()
        shaped = msgspec.msgpack.decode(body, type=Statement) if body else None
        if shaped is not None:
            return statement.sign(shaped, device, now, lambda x: key.sign(x, ec.ECDSA(hashes.SHA256())))
        return good

    later = msgspec.msgpack.encode(
        msgspec.structs.replace(msgspec.msgpack.decode(good.statement, type=Statement), sequence=2**60)
    )
    other = ec.generate_private_key(ec.SECP256R1())
    forged = {
        "another key": lambda: bench.say(bench.agent(lambda x: other.sign(x, ec.ECDSA(hashes.SHA256())))),
        "unsigned": lambda: msgspec.structs.replace(good, statement=later, signature=b""),
        "another device": lambda: signed(later, DeviceId("camera-2")),
        "altered": lambda: msgspec.structs.replace(good, statement=later),
        "no statement": lambda: msgspec.structs.replace(signed(later), statement=b"\xc1"),
    }[how]()
    found = bench.hear(forged)
    assert found.row.statement == good.statement
    assert found.row.badly_signed == 1
    assert found.row.badly_signed_why
    assert bench.kedge.health.counts()["badly_signed_statements"] == 1


@pytest.mark.parametrize(
    ("signed_at", "refused_at"), [(2**63, 0.0), (-1, 0.0), (5, math.nan), (5, 1e300), (5, -1.0)]
)
def test_a_device_cannot_spoil_its_page_with_times_of_no_calendar(
    bench: Bench, signed_at: int, refused_at: float
) -> None:
    """Somebody has taken over a device, and signs times that nobody can show: its page would be an error.

    There, of all places, people would see what it refused, and shut it out.
    """
    key = device_key.signer(bench.folder / "key.pem")
    good = msgspec.msgpack.decode(bench.say(bench.agent()).statement, type=Statement)
    attack = AttackIndicator(what="chunk", reason="bad_digest", detail="x", time=refused_at)
    body = msgspec.msgpack.encode(msgspec.structs.replace(good, attack=attack, refused=1))
    signature = key(proof.to_sign(statement.PURPOSE, DEVICE, signed_at, body))
    found = bench.hear(SignedStatement(statement=body, time=signed_at, signature=signature))
    assert found.statement is None
    assert found.row.badly_signed == 1
    assert "expected a time" in found.row.badly_signed_why


def test_an_attack_is_told_of_with_the_signature_and_remembered(bench: Bench) -> None:
    """What was refused, and why, outlives a restart of the agent; only a new refusal is news."""
    agent = bench.agent()
    agent.refused("assignment", "rollback", "expected version 4, got 2", b"the timestamp it holds")
    found = bench.hear(bench.say(agent))
    assert found.statement is not None
    assert found.statement.attack is not None
    assert (found.statement.refused, found.statement.attack.reason) == (1, "rollback")
    assert found.statement.held_timestamp == b"the timestamp it holds"
    since = found.row.attack_since
    assert since == bench.kedge.clock.now()

    bench.kedge.clock.seconds += 60
    again = bench.agent()
    found = bench.hear(bench.say(again))
    assert found.statement is not None
    assert found.statement.attack is not None
    assert found.row.attack_since == since
    again.refused("chunk", "bad_digest", "x" * 10_000)
    found = bench.hear(bench.say(again))
    assert found.row.attack_since == bench.kedge.clock.now()
    assert found.statement is not None
    assert found.statement.refused == 2
    assert len(codec.encode(bench.sent()[-1])) < 2048


def test_people_are_told_on_the_overview_and_on_the_devices_page(bench: Bench) -> None:
    """The events about a refusal were lost on the way, or held back; what the device signed tells of it."""
    agent, now = bench.agent(), bench.kedge.clock.now()
    bench.hear(bench.say(agent, hello(active=str(Digest.of(b"x")))))
    with bench.kedge.database.read() as session:
        assert needs.current(session, now) == []
    agent.refused("assignment", "not_in_repository", "bundles/digits/9/laptop-x86 is unknown")
    last = bench.say(agent, hello(active=str(Digest.of(b"x"))))
    bench.hear(last)
    bench.hear(msgspec.structs.replace(last, signature=b""))
    with bench.kedge.database.read() as session:
        titles = [(need.title, need.tone, need.href) for need in needs.current(session, now)]
        page = devices.page(session, DEVICE, now)
    href = f"/devices/{DEVICE}#signed"
    assert titles == [
        ("1 device signed that it refused something", "sec", href),
        ("1 device did not sign what was said in its name", "sec", href),
    ]
    assert page is not None
    assert page.differs == {"digits": str(Digest.of(b"x"))}  # nobody else has told of it here


def test_a_flood_of_refusals_makes_few_statements(bench: Bench) -> None:
    agent = bench.agent()
    for number in range(100):
        agent.refused("assignment", "bad_signature", f"{number}")
        agent.send_due(hello)
        bench.clock.seconds += PAUSE / 50
    assert len(bench.sent()) == 2
    bench.clock.seconds += PAUSE
    agent.send_due(hello)
    agent.send_due(hello)
    assert len(bench.sent()) == 3


def test_a_full_disk_or_a_lost_key_does_not_stop_the_agent(bench: Bench) -> None:
    agent = bench.agent()
    first = bench.hear(bench.say(agent)).row.sequence
    (bench.folder / "statements.json").unlink()
    (bench.folder / "statements.json").mkdir()  # nothing can be put in its place
    assert bench.hear(bench.say(agent)).row.sequence > first

    def lost(_: bytes) -> bytes:
        raise StateError("key.pem: gone")

    before = len(bench.sent())
    (bench.folder / "statements.json").rmdir()
    bench.say(bench.agent(lost))
    assert len(bench.sent()) == before


def test_what_a_pulled_token_kept_from_being_said_is_said_when_it_is_back(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The token is out for minutes, and a rollback is tried meanwhile: the server learns of it after."""
    there = False

    def token(data: bytes) -> bytes:
        if not there:
            raise StateError("token kedge: there is no such token")
        return device_key.signer(bench.folder / "key.pem")(data)

    agent = bench.agent(token)
    agent.refused("assignment", "rollback", "expected version 7 or later, got 1")
    for _ in range(30):
        bench.clock.seconds += PAUSE
        agent.send_due(hello)
    assert bench.sent() == []
    assert [x.getMessage() for x in caplog.records] == [
        "no statement is made: token kedge: there is no such token"
    ]
    there = True
    bench.clock.seconds += PAUSE
    agent.send_due(hello)
    (signed,) = bench.sent()
    said_now = bench.hear(signed).statement
    assert said_now is not None
    assert said_now.attack is not None
    assert said_now.attack.reason == "rollback"


def test_a_new_key_begins_anew(bench: Bench) -> None:
    """The device was enrolled again with a new disk, whose clock is behind: what it says counts."""
    bench.hear(bench.say(bench.agent()))
    (bench.folder / "statements.json").unlink()
    key = device_key.make(bench.folder / "key.pem")
    with bench.kedge.database.write() as session:
        device = session.get(Device, DEVICE)
        assert device is not None
        device.identity_key = public_pem(key.public_key())
        session.add(device)
    bench.kedge.clock.seconds -= 3600
    found = bench.hear(bench.say(bench.agent(), hello(version=9)))
    assert found.statement is not None
    assert found.statement.assignment_version == 9


def test_a_server_restored_from_an_old_backup_goes_beyond_what_devices_hold(bench: Bench) -> None:
    """The disk of the server died; its backup is a week old, and devices have followed it since.

    What it signs would look like a rollback to them. From the device's own signed statement it learns which
    assignment it has verified, and from the timestamp that it holds, for it bears the server's signature.
    """
    kedge = bench.kedge
    first = kedge.release("v1")
    kedge.roll_out(first)
    while kedge.publish_assignments():
        pass
    shutil.copytree(kedge.folder / "trust", bench.folder / "backup")
    held = TrustClient(
        bench.folder / "trust", MqttFetcher(kedge.broker.link(DEVICE), 1.0, 0.0), DEVICE, TARGET
    )
    held.bootstrap(kedge.signing.first_root())
    kedge.release("v2")
    kedge.release("v3")
    for name, data in kedge.signing.files().items():
        kedge.connection.publish(topics.trust(name), data)
    held.refresh(kedge.clock.wall())

    restored = SigningService(kedge.folder / "keys", bench.folder / "backup", kedge.clock)
    restored.open()
    with pytest.raises(TrustError) as refused:
        _refresh(held, kedge, restored)
    assert refused.value.reason == "rollback"
    assert restored.outrun(held.held_timestamp())
    assert not restored.outrun(held.held_timestamp())
    _refresh(held, kedge, restored)

    agent = bench.agent()
    agent.refused("assignment", "rollback", "expected version 7 or later, got 1", held.held_timestamp())
    bench.hear(bench.say(agent, hello(version=7)))
    while kedge.publish_assignments():
        pass
    document = json.loads(kedge.broker.retained[topics.assignment(DEVICE)])["signed"]
    assert document["version"] == 8
    assert list(document["targets"]) == [f"bundles/digits/v1/{TARGET}"]


def _refresh(held: TrustClient, kedge: Parts, signing: SigningService) -> None:
    for name, data in signing.files().items():
        kedge.connection.publish(topics.trust(name), data)
    held.refresh(kedge.clock.wall())


def test_nobodys_word_alone_makes_versions_jump(bench: Bench) -> None:
    """A device of an attacker sends timestamps: forged, or signed with a stolen key and far ahead."""
    signing = bench.kedge.signing
    version = signing.image().timestamp.version
    meta = signing.image().timestamp.snapshot_meta

    def timestamp(number: int, key: CryptoSigner) -> bytes:
        return signed_file(
            Timestamp(version=number, expires=bench.kedge.clock.wall(), snapshot_meta=meta), [key]
        )

    stolen = KeyFolder(bench.kedge.folder / "keys").load("timestamp")
    assert stolen is not None
    for forged in (timestamp(version + 5, CryptoSigner.generate_ed25519()), timestamp(2**31, stolen)):
        with pytest.raises(TrustError):
            signing.outrun(forged)
        agent = bench.agent()
        agent.refused("assignment", "rollback", "older", forged)
        found = bench.hear(bench.say(agent))
        assert found.statement is not None
        assert signing.image().timestamp.version == version
