"""Who may do what is said three times: in `fleet.wire.topics`, in mosquitto's ACL, in the embedded broker.

One table of identities and topics holds all three to the same.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from brokers import mosquitto_binary
from fleet.errors import WireError
from fleet.ids import DeviceId, Digest
from fleet.wire import topics
from mtls import keep
from processes import Process, free_port, listens, wait_until
from server.adapters.clock import SystemClock
from server.adapters.embedded_broker import EmbeddedBroker
from server.services.broker import broker_config
from server.services.identity.authority import FleetAuthority

SERVER, PASSWORD = "kedge_server", "secret"
REAL = ("d1", "d-2", "a" * 63)
#: No such id is ever given away; if one were, it would still be nobody.
STRANGE = ("#", "+", "a/b", "D1", "d1/#", "$SYS")
KINDS = (*topics.UPLINK, *topics.DOWNLINK, "other", "")
SHARED = (
    topics.chunk(Digest.of(b"c")),
    topics.trust("timestamp.json"),
    topics.trust("1.root.json"),
    topics.CHUNK,
    topics.TRUST,
    topics.DEVICE,
    topics.ROOT,
    f"{topics.CHUNK}/a/b",
    f"{topics.TRUST}/a/b",
    "kedge/v2/chunk/a",
    "other/topic",
)
TABLE = (
    *(f"{topics.DEVICE}/{name}/{kind}" for name in ("d1", "d-2", "D1", "a", "") for kind in KINDS),
    f"{topics.DEVICE}/d1",
    f"{topics.DEVICE}/d1/hello/more",
    f"{topics.ROOT}/d1/hello",
    *SHARED,
)
#: Filters that ask for more than anybody may have.
WIDE = (
    "#",
    "kedge/#",
    f"{topics.ROOT}/#",
    f"{topics.DEVICE}/+/assignment",
    f"{topics.DEVICE}/d1/+",
    "+/+/+/+/+",
)


class Broker(NamedTuple):
    """Where one of the two brokers is, and how one proves to be somebody there."""

    port: int
    folder: Path
    authority: FleetAuthority | None

    def client(self, name: str) -> Member:
        """Connect as somebody; the server is `kedge_server` where passwords count."""
        return Member(self, name)


class Member:
    """One connection, which remembers what comes."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.refused = threading.Event()
        server = name == SERVER
        shown = "kedge-server" if server and broker.authority is not None else name
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=shown, protocol=MQTTProtocolVersion.MQTTv311
        )
        if broker.authority is None:
            self._client.username_pw_set(shown, PASSWORD)
        else:
            issued = broker.authority.issue_visit(shown)
            identity = keep(
                broker.folder, f"id-{len(list(broker.folder.iterdir()))}", issued.key, issued.certificate
            )
            context = ssl.create_default_context(cafile=str(broker.folder / "out" / "ca.pem"))
            context.load_cert_chain(identity.certificate, identity.key)
            self._client.tls_set_context(context)
        self._client.on_message = lambda _c, _u, m: self.received.append((m.topic, bytes(m.payload)))
        self._client.on_connect = self._answered
        self._client.on_disconnect = lambda *_: self.refused.set()
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        wait_until(lambda: self._client.is_connected() or self.refused.is_set(), "it is in, or it is not", 10)

    def _answered(
        self, _client: Client, _user: object, _flags: object, reason: ReasonCode, _p: Properties | None
    ) -> None:
        if reason.is_failure:
            self.refused.set()

    @property
    def admitted(self) -> bool:
        """Whether the broker let it in."""
        return not self.refused.is_set()

    def publish(self, payload: bytes, *where: str) -> None:
        """Publish on each of these, whether the broker takes it or not."""
        for sent in [self._client.publish(topic, payload, qos=1) for topic in where]:
            sent.wait_for_publish(5)

    def subscribe(self, *filters: str) -> None:
        """Ask for each of these."""
        answered = threading.Event()
        self._client.on_subscribe = lambda *_: answered.set()
        result, _ = self._client.subscribe([(one, 1) for one in filters])
        assert result is MQTTErrorCode.MQTT_ERR_SUCCESS
        assert answered.wait(5)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module", params=["mosquitto", "embedded"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder, port = tmp_path_factory.mktemp("rules"), free_port()
    if request.param == "embedded":
        embedded = EmbeddedBroker("127.0.0.1", port, (SERVER, PASSWORD), lambda _name, word: word == PASSWORD)
        embedded.start()
        yield Broker(port, folder, None)
        embedded.stop()
        return
    clock = SystemClock()
    authority = FleetAuthority(folder / "ca", clock)
    config = broker_config.write(folder / "out", authority, clock, port=port, host="127.0.0.1")[0]
    # Started by root, mosquitto becomes a user who may not read a test's folder.
    config.write_text(f"user root\n{config.read_text()}")
    process = Process([mosquitto_binary(), "-c", str(config)], folder / "log")
    try:
        wait_until(lambda: listens(port) or not process.running(), "mosquitto listens")
        yield Broker(port, folder, authority)
    finally:
        process.kill()


def may(name: str, topic: str, *, publish: bool) -> bool:
    """Return what `fleet.wire.topics` says; somebody whose name is no device id may do nothing."""
    try:
        device = DeviceId(name)
    except WireError:
        return False
    return topics.may_publish(device, topic) if publish else topics.may_subscribe(device, topic)


def nobodys(name: str) -> set[str]:
    """Return the topics below a name that is no device id: the server drops what comes there, unread."""
    return (
        set() if name in REAL else {topic for topic in TABLE if topic.startswith(f"{topics.DEVICE}/{name}/")}
    )


def mark(server: Member) -> None:
    """Wait until everything before has gone through the broker."""
    payload = str(len(server.received)).encode() + b" mark"
    server.publish(payload, topics.trust("mark"))
    wait_until(lambda: any(seen == payload for _, seen in server.received), "the server's own message comes")


@pytest.mark.parametrize("name", [*REAL, *STRANGE])
def test_what_one_publishes_arrives_where_the_rules_say_so(broker: Broker, name: str) -> None:
    server, member = broker.client(SERVER), broker.client(name)
    try:
        server.subscribe("#")
        if member.admitted:
            member.publish(b"word", *TABLE)
        mark(server)
        arrived = {topic for topic, payload in server.received if payload == b"word"}
        assert arrived - nobodys(name) == {topic for topic in TABLE if may(name, topic, publish=True)}
    finally:
        member.close()
        server.close()


@pytest.mark.parametrize("name", [*REAL, *STRANGE])
def test_what_one_receives_is_what_the_rules_let_one_subscribe_to(broker: Broker, name: str) -> None:
    """Asking for everything gives no more than asking for each."""
    server, member = broker.client(SERVER), broker.client(name)
    allowed = {topic for topic in TABLE if may(name, topic, publish=False)}
    try:
        server.subscribe("#")
        if member.admitted:
            member.subscribe(*TABLE, *WIDE)
        server.publish(b"word", *TABLE)
        mark(server)
        wait_until(lambda: {topic for topic, _ in member.received} >= allowed, "what is allowed has come", 10)
        got = {topic for topic, payload in member.received if payload == b"word"}
        # A certificate of the fleet reads chunks and metadata, which are public, whatever the name in it.
        public = {topic for topic in SHARED if may("d1", topic, publish=False)}
        assert got - nobodys(name) in (allowed, allowed | public)
        if name in REAL:
            assert got == allowed
    finally:
        member.close()
        server.close()
