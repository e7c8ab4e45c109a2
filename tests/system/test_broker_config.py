"""The mosquitto that `kedge broker config` sets up: who gets in, and what a device can do there."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from brokers import mosquitto_binary
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from fleet.errors import WireError
from fleet.ids import DeviceId, Digest
from fleet.wire import topics
from fleet.wire.enrolment import BrokerAccess
from mtls import Identity, Peer, keep, peer, request
from processes import free_port, listens, running, wait_until
from server.adapters.mqtt import BrokerLogin, MqttConnection
from server.errors import InvalidError, SettingsError
from server.services.broker import broker_config
from server.services.identity.authority import SERVER_NAME, FleetAuthority
from trust_world import ManualClock, World

C = TypeVar("C", MqttLink, MqttConnection)


class NowClock(ManualClock):
    """The real time, for certificates that a real TLS library checks."""

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        import time

        return time.time()


class Site:
    """A running broker, its authority, and identities."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = FleetAuthority(folder / "ca", NowClock())
        self.port = free_port()
        self.files = broker_config.write(
            folder / "out", self.authority, NowClock(), port=self.port, host="127.0.0.1"
        )
        self.ca = folder / "out" / "ca.pem"

    def device(self, name: str) -> Identity:
        """Enrol a device."""
        key, csr = request()
        certificate = self.authority.sign_device(csr, DeviceId(name))
        return keep(self.folder / "ids", name, key, certificate.encode())

    def server(self) -> Identity:
        """Return the server's identity."""
        return keep(self.folder / "ids", "server", *self.authority.issue_server())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("broker"))
    config = made.files[0]
    # Started by root, mosquitto becomes a user who may not read a test's folder.
    config.write_text(f"user root\n{config.read_text()}")
    log = made.folder / "mosquitto.log"
    with running([mosquitto_binary(), "-c", str(config)], log) as process:
        wait_until(lambda: listens(made.port) or not process.running(), "mosquitto listens")
        assert process.running(), process.output()
        yield made


@pytest.fixture
def server(site: Site) -> Iterator[Peer]:
    with peer(site.port, site.ca, site.server(), "server") as connected:
        connected.subscribe(f"{topics.ROOT}/#")
        yield connected


def seen(server: Peer, site: Site) -> list[tuple[str, bytes]]:
    """Return what the server has received when a message sent last has come."""
    mark = (topics.trust(f"mark-{len(server.received)}"), b"x")
    server.publish(*mark)
    wait_until(lambda: mark in server.received, "the server's own message comes back")
    assert site.port
    return server.received


def test_without_a_certificate_nobody_gets_in(site: Site) -> None:
    """A client that knows the address but has no certificate of the fleet tries to connect."""
    with (
        pytest.raises((ssl.SSLError, ConnectionError, AssertionError)),
        peer(site.port, site.ca, None, "stranger"),
    ):
        pass


def test_a_certificate_of_another_authority_is_none(site: Site, tmp_path: Path) -> None:
    """Somebody makes an authority of his own, and a certificate that says kedge-server."""
    other = FleetAuthority(tmp_path / "ca", NowClock())
    identity = keep(tmp_path, "evil", *other.issue_server())
    with (
        pytest.raises((ssl.SSLError, ConnectionError, AssertionError)),
        peer(site.port, site.ca, identity, "evil"),
    ):
        pass


def test_a_device_is_no_authority(site: Site, tmp_path: Path) -> None:
    """A device signs a certificate that says kedge-server with its own key, and shows both as a chain."""
    device = site.device("forger")
    by = x509.load_pem_x509_certificate(device.certificate.read_bytes())
    signer = serialization.load_pem_private_key(device.key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kedge-server")]))
        .issuer_name(by.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(by.not_valid_before_utc)
        .not_valid_after(by.not_valid_after_utc)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    own = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain = made.public_bytes(pem) + device.certificate.read_bytes()
    forged = keep(tmp_path, "forged", own, chain)
    context = ssl.create_default_context(cafile=str(site.ca))
    context.load_cert_chain(forged.certificate, forged.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in which a client is told at once
    with (
        socket.create_connection(("127.0.0.1", site.port), 5) as plain,
        pytest.raises(ssl.SSLError, match="ALERT"),
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connected,
    ):
        connected.recv(1)


@pytest.mark.parametrize("named", [True, False])
def test_a_device_is_no_broker(site: Site, named: bool) -> None:
    """A device in the same network answers in the broker's place, with the certificate that it has.

    It has no host's name in it; nor would one help, for it is not for servers.
    """
    rogue = site.device("rogue")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(rogue.certificate, rogue.key)
    victim = ssl.create_default_context(cafile=str(site.ca))
    victim.check_hostname = named
    near, far = socket.socketpair()
    with near, far, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(_answer, context, far)
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            victim.wrap_socket(near, server_hostname="localhost" if named else None)
        assert "alert" in answering.result(10).lower()


def _answer(context: ssl.SSLContext, end: socket.socket) -> str:
    """Answer as a server; return why that failed."""
    try:
        context.wrap_socket(end, server_side=True).close()
    except ssl.SSLError as error:
        return str(error)
    return ""


def test_a_device_publishes_only_as_itself(site: Site, server: Peer) -> None:
    """d1 speaks for d2, publishes a chunk, metadata, its own assignment: only its own uplink arrives."""
    d2, chunk = DeviceId("d2"), topics.chunk(Digest.of(b"c"))
    forbidden = [topics.hello(d2), topics.event(d2), chunk, topics.trust("timestamp.json")]
    forbidden += [topics.assignment(DeviceId("d1")), "kedge/v1/device/d1/other", "other/topic", "$SYS/x"]
    with peer(site.port, site.ca, site.device("d1")) as d1:
        for topic in forbidden:
            d1.publish(topic, b"evil", retain=True)
        d1.publish(topics.hello(DeviceId("d1")), b"good")
        received = seen(server, site)
    assert (topics.hello(DeviceId("d1")), b"good") in received
    assert not [topic for topic, payload in received if payload == b"evil"]


def test_a_device_reads_only_its_own(site: Site, server: Peer) -> None:
    """d1 subscribes to d2's assignment, to everything, to `+`: it gets its own, chunks and metadata."""
    mine, other = topics.assignment(DeviceId("d1")), topics.assignment(DeviceId("d2"))
    chunk, meta = topics.chunk(Digest.of(b"c")), topics.trust("timestamp.json")
    with peer(site.port, site.ca, site.device("d1")) as d1:
        d1.subscribe(other, mine, chunk, meta, "kedge/v1/device/+/assignment", "#")
        for topic in (other, topics.reply(DeviceId("d2")), topics.hello(DeviceId("d2"))):
            server.publish(topic, b"secret", retain=True)
        for topic in (mine, chunk, meta):
            server.publish(topic, b"mine", retain=True)
        wait_until(lambda: {t for t, _ in d1.received} >= {mine, chunk, meta}, "its own messages come")
        server.publish(topics.reply(DeviceId("d1")), b"last")
        wait_until(lambda: any(payload == b"last" for _, payload in d1.received), "the last message comes")
    assert not [topic for topic, payload in d1.received if payload == b"secret"]


def test_a_device_cannot_take_over_another_session(site: Site, server: Peer) -> None:
    """d2 connects with the client id of d1, and of the server, to throw them out."""
    with peer(site.port, site.ca, site.device("d1"), "d1") as d1:
        for stolen in ("d1", "server", "kedge-server"):
            with peer(site.port, site.ca, site.device("d2"), stolen) as d2:
                d2.publish(topics.hello(DeviceId("d2")), b"hi")
        d1.publish(topics.hello(DeviceId("d1")), b"still here")
        assert (topics.hello(DeviceId("d1")), b"still here") in seen(server, site)
        assert not d1.lost
        assert not server.lost


@pytest.mark.parametrize("name", ["#", "+", "a/b", "", "A", "a" * 64, "-a", "a\0"])
def test_no_id_can_mean_something_in_an_acl(name: str) -> None:
    """A device asks to be called `#`: such an id cannot even be made."""
    with pytest.raises(WireError):
        DeviceId(name)


def test_the_servers_name_is_not_given_away(site: Site) -> None:
    """A device asks to be called kedge-server, the user who may do everything."""
    with pytest.raises(InvalidError, match="server's own"):
        site.authority.sign_device(request()[1], DeviceId("kedge-server"))


@pytest.mark.parametrize(
    ("port", "host", "message"),
    [(0, "", "port"), (70000, "", "port"), (8883, "a b", "host"), (8883, "#", "host")],
)
def test_a_wrong_port_or_host_is_named(
    site: Site, tmp_path: Path, port: int, host: str, message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        broker_config.write(tmp_path / "out", site.authority, NowClock(), port=port, host=host)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("", "listener 8883\n"),
        ("broker.example", "listener 8883\n"),
        ("10.1.2.3", "listener 8883 10.1.2.3\n"),
        ("[::1]", "listener 8883 ::1\n"),
        ("localhost", "listener 8883 localhost\n"),
    ],
)
def test_it_binds_to_an_address_and_answers_to_a_name(
    site: Site, tmp_path: Path, host: str, line: str
) -> None:
    config = broker_config.write(tmp_path, site.authority, NowClock(), port=8883, host=host)[0]
    assert line in config.read_text()


def test_a_folder_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file"):
        broker_config.write(tmp_path / "file", site.authority, NowClock(), port=8883)


def test_a_link_shows_the_renewed_certificate_when_it_connects_again(site: Site, tmp_path: Path) -> None:
    """A device was switched off until its certificate had ended; it gets a new one while it tries."""
    past = FleetAuthority(site.folder / "ca", ManualClock(NowClock().now() - 100 * 86400))
    key, csr = request()
    identity = keep(tmp_path, "d9", key, past.sign_device(csr, DeviceId("d9")).encode())
    link = MqttLink(
        "d9",
        BrokerAccess(url=f"mqtts://127.0.0.1:{site.port}"),
        credentials=Credentials(key=identity.key, certificate=identity.certificate, ca=site.ca),
        will=Message(topics.status(DeviceId("d9")), b"gone"),
        on_change=lambda _connected: None,
    )
    log = site.folder / "mosquitto.log"
    before = log.stat().st_size
    link.start()
    try:
        wait_until(lambda: "certificate verify failed" in log.read_text()[before:], "the old one is refused")
        assert not link.connected
        identity.certificate.write_text(site.authority.sign_device(csr, DeviceId("d9")))
        link.certificate_renewed()
        wait_until(lambda: link.connected, "the new one is taken")
    finally:
        link.stop()


class MutualTls:
    """The agent's and the server's own adapters on that broker; a `trust_world.Transport`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._url = f"mqtts://127.0.0.1:{site.port}"
        self._open: list[MqttLink | MqttConnection] = []

    def link(self, device: str = "") -> MqttLink:
        """Connect a device with its certificate."""
        identity = self._site.device(device)
        link = MqttLink(
            device,
            BrokerAccess(url=self._url),
            credentials=Credentials(key=identity.key, certificate=identity.certificate, ca=self._site.ca),
            will=Message(topics.status(DeviceId(device)), b"gone"),
            on_change=lambda _connected: None,
        )
        return self._start(link)

    def connection(self) -> MqttConnection:
        """Connect the server with its certificate; there is one, for its client id is its name."""
        for known in self._open:
            if isinstance(known, MqttConnection):
                return known
        identity = self._site.server()
        login = BrokerLogin(ca=self._site.ca, certificate=identity.certificate, key=identity.key)
        return self._start(MqttConnection(self._url, SERVER_NAME, login))

    def _start(self, client: C) -> C:
        client.start()
        self._open.append(client)
        wait_until(lambda: client.connected, "connected")
        return client

    def close(self) -> None:
        """Disconnect everybody."""
        for client in self._open:
            client.stop()


def test_the_whole_way_over_mutual_tls(site: Site, tmp_path: Path) -> None:
    """Metadata, assignment and chunks reach a device that may read nothing but its own."""
    transport = MutualTls(site)
    try:
        world = World(tmp_path, transport, patience=1.0)
        bundle = world.server.release("1", size=2_000_000)
        device = world.device("d7")
        device.downloader.fetch(device.accept(world.server.assignment("d7", [bundle])).targets[0])
        assert device.store.has(Digest(bundle.digest))
    finally:
        transport.close()
