"""The connection port's suite, on the fake and on real brokers; and what the embedded broker refuses."""

from __future__ import annotations

import contextlib
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from brokers import Mosquitto, Nats, mosquitto, nats
from fake_link import FakeBroker
from fleet.bundle.cutting import CHUNK_MAX
from fleet.wire.topics import TRUST
from processes import free_port, wait_until
from server.adapters.embedded_broker import EmbeddedBroker
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.errors import BrokerError, SettingsError
from server.ports.messaging import Connection, Incoming

SERVER = ("kedge_server", "server-secret")
TOPIC = "kedge/v1/chunk/" + "a" * 64
Make = Callable[[str], Connection]


def _known(name: str, password: str) -> bool:
    return name in ("dev-a", "dev-b") and password == f"{name}-secret"


@pytest.fixture(scope="module")
def embedded() -> Iterator[int]:
    port = free_port()
    broker = EmbeddedBroker("127.0.0.1", port, SERVER, _known)
    broker.start()
    yield port
    broker.stop()
    assert broker.check() == "not running"


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    with nats(tmp_path_factory.mktemp("nats")) as broker:
        yield broker


@pytest.fixture(params=["fake", "embedded", "mosquitto", "nats"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Give a function from a client id to a connection that is up."""
    with contextlib.ExitStack() as stack:
        if request.param == "fake":
            fake = FakeBroker()
            yield lambda _name: fake.connection()
            return
        if request.param == "embedded":
            url = f"mqtt://127.0.0.1:{request.getfixturevalue('embedded')}"
            login = BrokerLogin(username=SERVER[0], password=SERVER[1])
        elif request.param == "nats":
            url, login = request.getfixturevalue("nats_server").url, BrokerLogin()
        else:
            url, login = stack.enter_context(mosquitto(tmp_path / "broker")).url, BrokerLogin()

        def connect(name: str) -> Connection:
            connection = MqttConnection(url, name, login)
            connection.start()
            stack.callback(connection.stop)
            assert connection.wait_connected(10)
            return connection

        yield connect


def _box(connection: Connection, topic_filter: str) -> queue.Queue[Incoming]:
    """Subscribe, and return when the broker has taken that in: it takes subscriptions in their order."""
    box: queue.Queue[Incoming] = queue.Queue()
    connection.subscribe(topic_filter, box.put)
    marker, seen = f"{TRUST}/marker-{uuid.uuid4().hex}", threading.Event()
    connection.subscribe(marker, lambda _message: seen.set())

    def heard() -> bool:
        connection.publish(marker, b"?", retain=False)
        return seen.wait(0.2)

    wait_until(heard, "the subscription is active")
    connection.unsubscribe(marker)
    return box


def test_a_retained_chunk_reaches_who_subscribes_later(make: Make) -> None:
    payload = bytes(range(256)) * (CHUNK_MAX // 256)
    make("publisher-1").publish(TOPIC, payload)
    box = _box(make("subscriber-1"), TOPIC)
    assert box.get(timeout=10) == Incoming(TOPIC, payload)


def test_an_empty_retained_payload_removes_what_was_retained(make: Make) -> None:
    publisher, marker = make("publisher-2"), TOPIC + "b"
    publisher.publish(TOPIC, b"old")
    publisher.publish(TOPIC, b"")
    publisher.publish(marker, b"there")
    later = make("subscriber-2")
    box = _box(later, TOPIC)
    assert _box(later, marker).get(timeout=10).payload == b"there"
    publisher.publish(marker, b"")
    with pytest.raises(queue.Empty):
        box.get_nowait()


def test_wildcard_subscriptions_see_every_device_and_only_its_kind(make: Make) -> None:
    box = _box(make("server-3"), "kedge/v1/device/+/report")
    device = make("device-3")
    device.publish("kedge/v1/device/dev-a/event", b"no", retain=False)
    device.publish("kedge/v1/device/dev-a/report", b"1", retain=False)
    device.publish("kedge/v1/device/dev-b/report", b"2", retain=False)
    found = {box.get(timeout=10).payload, box.get(timeout=10).payload}
    assert found == {b"1", b"2"}


def test_a_subscription_ends(make: Make) -> None:
    connection, publisher = make("server-4"), make("publisher-4")
    box, after = (
        _box(connection, "kedge/v1/device/dev-a/event"),
        _box(connection, "kedge/v1/device/dev-b/event"),
    )
    connection.unsubscribe("kedge/v1/device/dev-a/event")
    publisher.publish("kedge/v1/device/dev-a/event", b"1", retain=False)
    publisher.publish("kedge/v1/device/dev-b/event", b"2", retain=False)
    assert after.get(timeout=10).payload == b"2"
    assert box.empty()


def test_many_messages_all_arrive(make: Make) -> None:
    box, publisher = _box(make("server-5"), "kedge/v1/device/+/event"), make("device-5")
    for number in range(300):
        publisher.publish("kedge/v1/device/dev-a/event", b"%d" % number, retain=False)
    assert sorted(int(box.get(timeout=10).payload) for _ in range(300)) == list(range(300))


def test_what_is_as_large_as_a_hard_request_arrives(make: Make) -> None:
    box = _box(make("server-6"), "kedge/v1/device/dev-a/request")
    payload = b"x" * (4 * 1024 * 1024)
    make("device-6").publish("kedge/v1/device/dev-a/request", payload, retain=False)
    assert box.get(timeout=10).payload == payload


def test_metadata_travels_under_its_files_name(make: Make, request: pytest.FixtureRequest) -> None:
    """Metadata files have a dot in their names, which separates inside NATS; before 2.10 it refuses."""
    topic = f"{TRUST}/timestamp.json"
    publisher = make("publisher-7")
    if request.node.callspec.params["make"] == "nats":
        version = request.getfixturevalue("nats_server").version
        if version < (2, 10):
            publisher.publish(topic, b"{}", qos=0)
            wait_until(lambda: not publisher.connected, "nats-server throws out who publishes it")
            return
    publisher.publish(topic, b"{}")
    assert _box(make("subscriber-7"), topic).get(timeout=10).payload == b"{}"


def test_publishing_without_a_broker_says_so() -> None:
    connection = MqttConnection(f"mqtt://127.0.0.1:{free_port()}", "lonely", BrokerLogin())
    with pytest.raises(BrokerError, match="not connected"):
        connection.publish(TOPIC, b"")


@pytest.mark.parametrize("run", [mosquitto, nats])
def test_a_connection_comes_back_and_subscribes_again_after_the_broker_was_killed(
    tmp_path: Path, run: Callable[[Path], contextlib.AbstractContextManager[Mosquitto | Nats]]
) -> None:
    with run(tmp_path) as broker:
        connection = MqttConnection(broker.url, "server", BrokerLogin())
        connects = threading.Semaphore(0)
        connection.on_connected(connects.release)
        box: queue.Queue[Incoming] = queue.Queue()
        connection.subscribe("kedge/v1/device/+/event", box.put)
        connection.start()
        assert connects.acquire(timeout=10)
        broker.kill()
        wait_until(lambda: not connection.connected, "the loss is noticed")
        broker.start()
        assert connects.acquire(timeout=10)
        connection.publish("kedge/v1/device/dev-a/event", b"back", retain=False)
        assert box.get(timeout=10).payload == b"back"
        connection.stop()


# --- what the embedded broker refuses ----------------------------------------------------------------


class _Guest:
    """A bare client, for doing what ours never does."""

    def __init__(self, port: int, name: str, password: str, client_id: str, will: str = "") -> None:
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=client_id)
        if name:
            self.client.username_pw_set(name, password)
        if will:
            self.client.will_set(will, b"boo", qos=1, retain=True)
        self.answer: queue.Queue[bool] = queue.Queue()
        self.granted: queue.Queue[bool] = queue.Queue()
        self.received: queue.Queue[bytes] = queue.Queue()
        self.client.on_connect = self._connected
        self.client.on_subscribe = self._subscribed
        self.client.on_message = self._received
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _connected(
        self, _c: Client, _d: object, _f: ConnectFlags, reason: ReasonCode, _p: Properties | None
    ) -> None:
        self.answer.put(not reason.is_failure)

    def _subscribed(
        self, _c: Client, _d: object, _m: int, reasons: list[ReasonCode], _p: Properties | None
    ) -> None:
        self.granted.put(not reasons[0].is_failure)

    def _received(self, _c: Client, _d: object, message: MQTTMessage) -> None:
        self.received.put(bytes(message.payload))

    def admitted(self) -> bool:
        return self.answer.get(timeout=10)

    def may_subscribe(self, topic_filter: str) -> bool:
        self.client.subscribe(topic_filter, qos=1)
        return self.granted.get(timeout=10)

    def leave(self, *, rudely: bool = False) -> None:
        if rudely:
            sock = self.client.socket()
            assert sock is not None
            self.client.loop_stop()
            sock.close()
            return
        self.client.disconnect()
        self.client.loop_stop()
        self.client.on_connect = self.client.on_subscribe = self.client.on_message = None


@pytest.fixture
def guest(embedded: int) -> Iterator[Callable[..., _Guest]]:
    guests: list[_Guest] = []

    def come(
        name: str = "dev-a", password: str | None = None, client_id: str | None = None, will: str = ""
    ) -> _Guest:
        secret = f"{name}-secret" if password is None else password
        guests.append(_Guest(embedded, name, secret, name if client_id is None else client_id, will))
        return guests[-1]

    yield come
    for found in guests:
        found.leave()


@pytest.fixture
def server(embedded: int) -> Iterator[MqttConnection]:
    login = BrokerLogin(username=SERVER[0], password=SERVER[1])
    connection = MqttConnection(f"mqtt://127.0.0.1:{embedded}", SERVER[0], login)
    connection.start()
    assert connection.wait_connected(10)
    yield connection
    connection.stop()


def test_the_anonymous_is_refused(guest: Callable[..., _Guest]) -> None:
    assert not guest("", "", "anybody").admitted()


def test_a_wrong_password_is_refused(guest: Callable[..., _Guest]) -> None:
    assert not guest(password="guess").admitted()
    assert not guest(SERVER[0], "guess", SERVER[0]).admitted()


def test_a_device_cannot_take_over_another_by_its_client_id(
    guest: Callable[..., _Guest], server: MqttConnection
) -> None:
    """With dev-b's client id, dev-a would throw dev-b out and inherit its session."""
    victim = guest("dev-b")
    assert victim.admitted()
    assert victim.may_subscribe("kedge/v1/device/dev-b/assignment")
    assert not guest("dev-a", client_id="dev-b").admitted()
    server.publish("kedge/v1/device/dev-b/assignment", b"still there", retain=False)
    assert victim.received.get(timeout=10) == b"still there"


def test_who_knows_no_password_cannot_throw_a_device_out(
    guest: Callable[..., _Guest], server: MqttConnection
) -> None:
    victim = guest("dev-b")
    assert victim.admitted()
    assert victim.may_subscribe("kedge/v1/device/dev-b/reply")
    assert not guest("dev-b", "guess").admitted()
    server.publish("kedge/v1/device/dev-b/reply", b"still there", retain=False)
    assert victim.received.get(timeout=10) == b"still there"


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "kedge/v1/#",
        "kedge/v1/device/dev-b/assignment",
        "kedge/v1/device/+/reply",
        "kedge/v1/device/dev-a/hello",
    ],
)
def test_a_device_subscribes_to_nothing_of_others(guest: Callable[..., _Guest], topic_filter: str) -> None:
    device = guest()
    assert device.admitted()
    assert not device.may_subscribe(topic_filter)
    assert device.may_subscribe("kedge/v1/device/dev-a/assignment")
    assert device.may_subscribe(TOPIC)


def test_what_a_device_publishes_elsewhere_goes_nowhere(
    guest: Callable[..., _Guest], server: MqttConnection
) -> None:
    """A stolen device writes assignments, chunks, and reports in another's name."""
    box = _box(server, "kedge/v1/+/+/+")
    device = guest()
    assert device.admitted()
    for topic in ("kedge/v1/device/dev-b/report", "kedge/v1/device/dev-a/assignment", "kedge/v1/a/b/c"):
        device.client.publish(topic, b"evil", qos=1, retain=True)
    device.client.publish("kedge/v1/device/dev-a/report", b"mine", qos=1)
    found = []
    while b"mine" not in found:
        found.append(box.get(timeout=10).payload)
    assert b"evil" not in found


def test_a_last_will_must_be_the_devices_own(guest: Callable[..., _Guest]) -> None:
    """The broker publishes the will itself, after the device is gone: it would pass every later check."""
    assert not guest(will="kedge/v1/device/dev-b/assignment").admitted()
    assert guest(will="kedge/v1/device/dev-a/status").admitted()


def test_a_device_that_comes_twice_keeps_one_connection_and_no_will_of_the_first(
    guest: Callable[..., _Guest], server: MqttConnection
) -> None:
    box = _box(server, "kedge/v1/device/+/status")
    first = guest(will="kedge/v1/device/dev-a/status")
    assert first.admitted()
    second = guest(will="kedge/v1/device/dev-a/status")
    assert second.admitted()
    second.client.publish("kedge/v1/device/dev-a/status", b"here", qos=1)
    assert box.get(timeout=10).payload == b"here"


def test_a_lost_device_leaves_its_will(guest: Callable[..., _Guest], server: MqttConnection) -> None:
    box = _box(server, "kedge/v1/device/+/status")
    device = guest(will="kedge/v1/device/dev-a/status")
    assert device.admitted()
    device.leave(rudely=True)
    assert box.get(timeout=10).payload == b"boo"


def test_a_port_that_is_taken_is_an_error_and_no_hang(embedded: int) -> None:
    with pytest.raises(SettingsError, match="embedded broker"):
        EmbeddedBroker("127.0.0.1", embedded, SERVER, _known).start()


def test_a_broker_that_is_not_there_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong port in `--broker`: the log says so, and not again with every attempt."""
    port = free_port()
    connection = MqttConnection(f"mqtt://127.0.0.1:{port}", "kedge_server", BrokerLogin())
    connection.start()
    try:
        wait_until(lambda: "Connection refused; trying again" in caplog.text, "it says so", 10)
        assert not connection.wait_connected(1.5)  # it tries again after a second
    finally:
        connection.stop()
    assert caplog.text.count(f"127.0.0.1:{port}") == 1
