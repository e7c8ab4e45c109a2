"""Waiting to be let in, and the order to wipe: what the agent does, step by step, with a clock in hand."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from device_agent.adapters import credentials, device_key, enrolment
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from device_agent.adapters.state import Asking, Identity, StateFolder
from device_agent.errors import RejectedError, StateError, UnreachableError
from device_agent.parting import PATIENCE, Parting
from fake_link import FakeBroker
from fleet.errors import TrustError
from fleet.ids import DeviceId
from fleet.trust.assignment import Assignment
from fleet.wire import codec
from fleet.wire.enrolment import BrokerAccess, EnrolReply, EnrolRequest, PendingReply, fingerprint
from fleet.wire.messages import Decommissioned
from mtls import keep, request
from server.ports.messaging import Incoming
from server.services.identity.authority import FleetAuthority
from sim_devices import TARGET, csr
from trust_world import START, ManualClock, Server, World

DEVICE = DeviceId("d1")


# --- waiting --------------------------------------------------------------------------------------------


class Line:
    """A server that answers each enrolment with the next of its answers."""

    def __init__(self, folder: Path) -> None:
        world = Server(folder / "server", FakeBroker(), ManualClock())
        self.root = world.signing.first_root()
        self.authority = FleetAuthority(folder / "ca", ManualClock())
        self.answers: list[object] = []
        self.asked: list[EnrolRequest] = []
        line = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, line.root)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                line.asked.append(msgspec.json.decode(body, type=EnrolRequest))
                answer = line.answers.pop(0)
                if isinstance(answer, int):
                    self._say(answer, b'{"detail": "no"}')
                elif isinstance(answer, PendingReply):
                    self._say(202, msgspec.json.encode(answer))
                else:
                    self._say(201, msgspec.json.encode(line.enrolled(line.asked[-1])))

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
                del format, args

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def enrolled(self, request: EnrolRequest) -> EnrolReply:
        """Let a device in."""
        return EnrolReply(
            device_id="d1",
            certificate_pem=self.authority.sign_device(request.csr_pem, DEVICE),
            ca_pem=self.authority.ca_pem.decode(),
            broker=BrokerAccess(url="mqtts://127.0.0.1:1"),
        )


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.http.shutdown()
    made.http.server_close()


def begin(line: Line, state: StateFolder) -> Identity | PendingReply:
    """Begin to enrol."""
    claim = f"kedge-claim.secret.{fingerprint(line.root)}"
    return enrolment.begin(state, server=line.url, claim=claim, target=TARGET, name="d1")


PENDING = PendingReply(device_id="d1", fingerprint="ab" * 32, retry_seconds=10.0)


def test_a_waiting_device_asks_ever_less_often_with_the_same_keys(line: Line, tmp_path: Path) -> None:
    """The server is away for a moment too; the device waits on, through a restart, and is let in."""
    line.answers = [PENDING] * 12 + [503, "let in"]
    state, pauses = StateFolder(tmp_path / "d1"), []
    assert isinstance(begin(line, state), PendingReply)
    assert not state.enrolled
    assert not state.tls.exists()

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    found = enrolment.wait(StateFolder(tmp_path / "d1"), pause)
    assert isinstance(found, Identity)
    assert (found.device_id, state.enrolled, state.asking()) == ("d1", True, None)
    assert 8.0 <= pauses[0] <= 12.0
    assert pauses[3] > pauses[0]
    assert max(pauses) <= 600.0 * 1.2
    assert len({x.vouched.key_pem for x in line.asked if x.vouched}) == 1
    credentials.present(state)


def test_waiting_can_be_given_up_and_gone_on_with(line: Line, tmp_path: Path) -> None:
    line.answers = [PENDING, PENDING, "let in"]
    state = StateFolder(tmp_path / "d1")
    begin(line, state)
    assert enrolment.wait(state, lambda _seconds: True) is None
    assert isinstance(enrolment.wait(state, lambda _seconds: True), Identity)
    assert enrolment.wait(state, lambda _seconds: True) is None  # nothing is under way


def test_a_no_is_a_no(line: Line, tmp_path: Path) -> None:
    line.answers = [PENDING, 403]
    state = StateFolder(tmp_path / "d1")
    begin(line, state)
    with pytest.raises(RejectedError, match="refuses"):
        enrolment.wait(state, lambda _seconds: False)


def test_a_damaged_note_of_what_was_asked_is_named(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.save_asking(Asking(server="x", claim="", root_fingerprint="", target=TARGET, name=""))
    (tmp_path / "enrolling.json").write_text("rubbish")
    with pytest.raises(StateError, match="enrolling"):
        state.asking()


# --- the order to wipe ----------------------------------------------------------------------------------


class Clock:
    """A device's clock that is moved by hand; implements `device_agent.ports.Clock`."""

    def __init__(self) -> None:
        self.seconds = START

    def now(self) -> datetime:
        """Return the wall clock."""
        return datetime.fromtimestamp(self.seconds, timezone.utc)

    def time(self) -> float:
        """Return the wall clock."""
        return self.seconds

    def monotonic(self) -> float:
        """Return the same."""
        return self.seconds

    def unique(self) -> str:
        """Return an id."""
        return "goodbye"


def order(world: World, version: int = 1) -> bytes:
    """Return a signed order to wipe."""
    until = START + 1e6
    return world.server.signing.sign_assignment(
        device=DEVICE, rollout="", version=version, bundles=[], activate_before=until, decommission=True
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world", FakeBroker())


def test_an_order_to_wipe_is_verified_as_any_assignment(world: World) -> None:
    """Signed by the director, for this device, not older than what it knows: or it is refused."""
    device, other = world.device("d1"), world.device("d2")
    accepted = device.accept(order(world))
    assert accepted.decommission
    with pytest.raises(TrustError, match="signed for device"):
        other.accept(order(world))
    device.accept(order(world, version=5))
    with pytest.raises(TrustError, match="expected version"):
        device.accept(order(world, version=2))
    with pytest.raises(TrustError):
        device.accept(order(world, version=6).replace(b'"d1"', b'"d3"'))
    evil = Server(world.folder / "evil", FakeBroker(), world.clock)
    forged = evil.signing.sign_assignment(
        device=DEVICE, rollout="", version=9, bundles=[], activate_before=START + 1e6, decommission=True
    )
    with pytest.raises(TrustError, match="sign"):
        device.accept(forged)


def test_an_order_to_wipe_that_also_names_bundles_is_refused(world: World) -> None:
    bundle = world.server.release("1")
    data = world.server.signing.sign_assignment(
        device=DEVICE,
        rollout="r",
        version=1,
        bundles=[bundle],
        activate_before=START + 1e6,
        decommission=True,
    )
    with pytest.raises(TrustError, match="both"):
        world.device("d1").accept(data)


def test_an_ordinary_assignment_says_nothing_of_wiping(world: World) -> None:
    bundle = world.server.release("1")
    data = world.server.assignment("d1", [bundle])
    assert b"decommission" not in data
    assert not world.device("d1").accept(data).decommission


@pytest.fixture
def parted() -> tuple[Parting, Clock, list[Decommissioned], list[str]]:
    """Return an agent's last part, its clock, what it says, and whether it has ended."""
    clock, ended = Clock(), list[str]()
    said: list[Decommissioned] = []

    def heard(message: Incoming) -> None:
        event = codec.UPLINK["event"](message.payload)
        assert isinstance(event, Decommissioned)
        said.append(event)

    broker = FakeBroker()
    link = broker.link("d1")
    server = broker.connection()
    server.subscribe("kedge/v1/device/+/event", heard)
    parting = Parting(DEVICE, link, clock, "boot")
    parting.at_end = lambda: ended.append("ended")
    return parting, clock, said, ended


def an_order(version: int = 3) -> Assignment:
    """Return a verified order."""
    now = ManualClock().wall()
    return Assignment(
        device="d1",
        rollout="",
        version=version,
        targets=(),
        activate_before=now,
        expires=now,
        decommission=True,
    )


Parted = tuple[Parting, Clock, list[Decommissioned], list[str]]


def test_it_says_goodbye_and_ends_when_the_server_has_heard(parted: Parted) -> None:
    parting, _, said, ended = parted
    parting.look()
    parting.acknowledged(("goodbye",))
    assert not parting.begun
    parting.begin(an_order())
    parting.begin(an_order(4))
    assert [x.assignment_version for x in said] == [3]
    parting.acknowledged(("another",))
    assert not parting.ended
    parting.acknowledged(("goodbye",))
    parting.acknowledged(("goodbye",))
    assert (parting.ended, ended) == (True, ["ended"])


def test_it_repeats_itself_and_ends_even_if_nobody_hears(parted: Parted) -> None:
    parting, clock, said, ended = parted
    parting.begin(an_order())
    for _ in range(40):
        clock.seconds += PATIENCE / 40
        parting.look()
    assert ended == ["ended"]
    assert 4 <= len(said) <= 8
    assert len({x.id for x in said}) == 1


# --- a clock that is wrong ------------------------------------------------------------------------------


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Run a TLS handshake in memory."""
    ends = [ssl.MemoryBIO() for _ in range(4)]
    a = client.wrap_bio(ends[0], ends[1], server_hostname="127.0.0.1")
    b = server.wrap_bio(ends[2], ends[3], server_side=True)
    steps: list[Callable[[], None]] = [a.do_handshake, b.do_handshake]
    for _ in range(6):
        for step in list(steps):
            try:
                step()
            except ssl.SSLWantReadError:
                pass
            else:
                steps.remove(step)
            ends[2].write(ends[1].read())
            ends[0].write(ends[3].read())
    assert not steps


@pytest.mark.parametrize(("ahead", "connects"), [(-1.0, True), (1000.0, True), (None, False)])
def test_a_clock_before_the_devices_own_certificate_judges_no_times(
    tmp_path: Path, ahead: float | None, connects: bool
) -> None:
    """The battery of its clock is flat, so that every certificate seems to be of the future.

    One whose own certificate has begun is right to refuse a broker's that has not.
    """
    days = 86400.0
    far = FleetAuthority(tmp_path / "ca", ManualClock(time.time() + 1000 * days))
    if ahead is not None and ahead < 0:
        far = FleetAuthority(tmp_path / "now", ManualClock(time.time()))
    broker = keep(tmp_path, "broker", *far.issue_broker())
    key, asked = request()
    near = far if ahead is not None else FleetAuthority(tmp_path / "ca", ManualClock(time.time()))
    own = keep(tmp_path, "own", key, near.sign_device(asked, DEVICE).encode())
    (tmp_path / "ca.pem").write_bytes(far.ca_pem)
    link = MqttLink(
        "d1",
        BrokerAccess(url="mqtts://127.0.0.1:1"),
        credentials=Credentials(key=own.key, certificate=own.certificate, ca=tmp_path / "ca.pem"),
        will=Message("kedge/v1/device/d1/status", b""),
        on_change=lambda _up: None,
    )
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(broker.certificate, broker.key)
    assert link._tls is not None
    if connects:
        handshake(link._tls, served)
        return
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        handshake(link._tls, served)


def test_a_link_believes_the_authorities_that_came_with_a_renewal_and_no_others(tmp_path: Path) -> None:
    """The broker's certificate is of the next authority; the agent runs on, with one of the old one.

    When the old authority is dropped, for its key was stolen, the agent believes it no more, and runs on too.
    """
    clock = ManualClock(time.time())
    old, new = FleetAuthority(tmp_path / "old", clock), FleetAuthority(tmp_path / "new", clock)
    key, asked = request()
    own = keep(tmp_path, "own", key, old.sign_device(asked, DEVICE).encode())
    ca = tmp_path / "ca.pem"
    ca.write_bytes(old.ca_pem)
    link = MqttLink(
        "d1",
        BrokerAccess(url="mqtts://127.0.0.1:1"),
        credentials=Credentials(key=own.key, certificate=own.certificate, ca=ca),
        will=Message("kedge/v1/device/d1/status", b""),
        on_change=lambda _up: None,
    )
    broker = keep(tmp_path, "broker", *new.issue_broker())
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(broker.certificate, broker.key)
    assert link._tls is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(link._tls, served)
    ca.write_bytes(old.ca_pem + new.ca_pem)
    link.certificate_renewed()
    handshake(link._tls, served)
    stolen = keep(tmp_path, "stolen", *old.issue_broker())
    forged = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    forged.load_cert_chain(stolen.certificate, stolen.key)
    handshake(link._tls, forged)
    ca.write_bytes(new.ca_pem)
    link.certificate_renewed()
    handshake(link._tls, served)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(link._tls, forged)
    assert link._client._ssl_context is link._tls


def test_authorities_without_a_link_to_a_known_one_are_not_believed(tmp_path: Path) -> None:
    known, evil = (FleetAuthority(tmp_path / name, ManualClock()) for name in ("known", "evil"))
    for links in ("", evil.ca_pem.decode()):
        with pytest.raises(UnreachableError, match="trusts"):
            credentials.authorities(known.ca_pem, evil.ca_pem.decode(), links)
    both = credentials.authorities(known.ca_pem, (known.ca_pem + evil.ca_pem).decode(), "")
    assert credentials.pem(both) == known.ca_pem
    assert not credentials.issued_by(both[0], credentials.authorities(evil.ca_pem, evil.ca_pem.decode(), ""))


def test_a_key_to_be_certified_is_made_once(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    first = credentials.next_key(state)
    assert credentials.next_key(state).public_key() == first.public_key()
    credentials.keep(
        state, first, FleetAuthority(tmp_path / "ca", ManualClock()).sign_device(csr(first), DEVICE)
    )
    assert credentials.next_key(state).public_key() != first.public_key()
    assert device_key.load(state.tls).public_key() == first.public_key()
