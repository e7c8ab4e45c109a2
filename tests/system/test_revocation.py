"""A device is revoked: on a real mosquitto with mutual TLS its connection ends, and it does not come back."""

from __future__ import annotations

import os
import re
import resource
import shlex
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from brokers import mosquitto_binary
from fake_doorman import FakeDoorman
from fleet.ids import DeviceId, Digest
from fleet.wire import topics
from mtls import Identity, Peer, keep, peer, request
from processes import Process, free_port, listens, wait_until
from server.adapters.clock import SystemClock
from server.adapters.doorman import CertificateDoorman, NoDoorman, PasswordDoorman
from server.adapters.embedded_broker import EmbeddedBroker
from server.commands.broker import broker
from server.db.engine import Database
from server.db.migrate import upgrade
from server.db.tables import Device
from server.errors import BrokerError, ClientError
from server.services.broker import broker_config, broker_watch
from server.services.broker.broker_watch import Watch
from server.services.identity import revocation_lists
from server.services.identity.authority import FleetAuthority
from server.services.identity.authority_folder import AuthorityFolder
from server.services.identity.revocations import Revocations
from server.services.live import Live
from sim_devices import TARGET
from trust_world import ManualClock


class Site:
    """A mosquitto as `kedge broker config` sets it up, the server's part, and a watch between the two."""

    def __init__(self, folder: Path, connections: int = 900) -> None:
        self.folder, self.clock, self.port = folder, SystemClock(), free_port()
        self.authority = FleetAuthority(folder / "ca", self.clock)
        self.out = folder / "out"
        self.config = broker_config.write(
            self.out, self.authority, self.clock, port=self.port, host="127.0.0.1", connections=connections
        )[0]
        # Started by root, mosquitto becomes a user who may not read a test's folder.
        self.config.write_text(f"user root\n{self.config.read_text()}")
        self.database = Database("sqlite://")
        upgrade(self.database)
        doorman = CertificateDoorman(f"mqtts://127.0.0.1:{self.port}", self.out / "ca.pem")
        self.revocations = Revocations(self.database, self.clock, self.authority, doorman, Live())
        self.process: Process | None = None
        self.http = _serve(self)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.watch = Watch(self.out, self.url, lambda: broker_watch.reload_by_pid(self.out))

    def start(self) -> None:
        """Start mosquitto."""
        self.process = process = Process([mosquitto_binary(), "-c", str(self.config)], self.folder / "log")
        wait_until(lambda: listens(self.port) or not process.running(), "mosquitto listens")
        assert process.running(), process.output()

    def kill(self) -> None:
        """Kill mosquitto."""
        if self.process is not None:
            self.process.kill()

    def enrol(self, name: str) -> Identity:
        """Give a device a certificate, as enrolment and renewal do."""
        key, csr = request()
        certificate = self.authority.sign_device(csr, DeviceId(name))
        with self.database.write() as session:
            device = session.get(Device, name) or Device(id=name, target=TARGET, enrolled_at=0.0)
            session.add(device)
            self.revocations.issued(session, name, certificate)
        return keep(self.folder / "ids", f"{name}-{time.monotonic_ns()}", key, certificate.encode())

    def revoke(self, name: str) -> None:
        """Revoke a device, as the service does."""
        with self.database.write() as session:
            device = session.get(Device, name)
            assert device is not None
            device.revoked_at = self.clock.now()
            session.add(device)
            self.revocations.revoke(session, name)

    def connect(self, identity: Identity) -> Peer:
        """Connect as a device."""
        return Peer(self.port, self.out / "ca.pem", identity, "")

    def refused(self, identity: Identity) -> bool:
        """Return whether the broker refuses a certificate as revoked."""
        try:
            self.tls(identity, None, ssl.TLSVersion.TLSv1_2).close()
        except ssl.SSLError as error:
            return "REVOKED" in (error.reason or "")
        return False

    def tls(
        self, identity: Identity, session: ssl.SSLSession | None, version: ssl.TLSVersion | None
    ) -> ssl.SSLSocket:
        """Connect by hand and read the broker's CONNACK."""
        context = ssl.create_default_context(cafile=str(self.out / "ca.pem"))
        context.load_cert_chain(identity.certificate, identity.key)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return _connected(context, self.port, session)

    def log(self) -> str:
        """Return what mosquitto says."""
        return self.process.output() if self.process is not None else ""

    def close(self) -> None:
        """End everything."""
        self.kill()
        self.http.shutdown()
        self.http.server_close()
        self.database.close()


def _connected(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), 5)
    connection = context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
    try:
        connection.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02d1")
        assert connection.recv(4) == b"\x20\x02\x00\x00"
    except BaseException:
        connection.close()
        raise
    return connection


def _serve(site: Site) -> ThreadingHTTPServer:
    """Serve the list as the API does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            newest = site.revocations.newest()
            tag = f'"{newest.number}"'
            same = self.headers.get("if-none-match") == tag
            self.send_response(304 if same else 200)
            self.send_header("etag", tag)
            self.end_headers()
            self.wfile.write(b"" if same else newest.pem)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            del format, args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    return http


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    mosquitto_binary()
    made = Site(tmp_path_factory.mktemp("revocation"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def enforced(site: Site) -> bool:
    """Return whether the worker's step came through."""
    try:
        site.revocations.enforce()
    except BrokerError:
        return False
    return True


def test_a_revoked_device_is_thrown_out_and_stays_out(site: Site) -> None:
    """A device is stolen while it is connected. A renewed one has two certificates, and both are to end."""
    old, new, other = site.enrol("stolen"), site.enrol("stolen"), site.enrol("honest")
    with (
        peer(site.port, site.out / "ca.pem", old) as live,
        peer(site.port, site.out / "ca.pem", other) as bystander,
    ):
        began = time.monotonic()
        site.revoke("stolen")
        assert site.watch.look()
        wait_until(lambda: enforced(site), "the broker refuses it", 10)
        wait_until(lambda: live.lost, "its connection has ended", 5)
        assert time.monotonic() - began < 5.0
        live._client.loop_stop()
        assert site.refused(old)
        assert site.refused(new)
        assert not bystander.lost
        bystander.publish(topics.hello(DeviceId("honest")), b"still here")
    assert not site.refused(other)
    site.kill()
    site.start()
    assert site.refused(old)
    assert not site.refused(other)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_revoked_device_cannot_resume_its_tls_session(site: Site, version: ssl.TLSVersion) -> None:
    """A session ticket lets a client come back without its certificate being looked at again."""
    name = f"resumer-{version.name[-1]}"
    identity = site.enrol(name)
    context = ssl.create_default_context(cafile=str(site.out / "ca.pem"))
    context.load_cert_chain(identity.certificate, identity.key)
    context.minimum_version = context.maximum_version = version
    with _connected(context, site.port, None) as first:
        ticket = first.session
    assert ticket is not None
    with _connected(context, site.port, ticket) as second:
        assert second.session_reused
    site.revoke(name)
    site.watch.look()
    wait_until(lambda: enforced(site), "the broker refuses it", 10)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        _connected(context, site.port, ticket)


def test_a_connection_that_had_not_said_who_it_is_ends_with_the_second_visit(site: Site) -> None:
    """A thief opens a connection, waits until it is revoked and thrown out, and only then sends CONNECT."""
    identity = site.enrol("sleeper")
    context = ssl.create_default_context(cafile=str(site.out / "ca.pem"))
    context.load_cert_chain(identity.certificate, identity.key)
    plain = socket.create_connection(("127.0.0.1", site.port), 5)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as sleeping:
        site.revoke("sleeper")
        site.watch.look()
        wait_until(lambda: enforced(site), "the broker refuses it", 10)
        sleeping.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02d1")
        assert sleeping.recv(4) == b"\x20\x02\x00\x00"
        with site.database.write() as session:
            device = session.get_one(Device, "sleeper")
            device.shut_out_at = site.clock.now() - 125  # two minutes later
            session.add(device)
        site.revocations.enforce()
        assert sleeping.recv(4) == b""


def test_without_a_watch_the_server_says_that_its_list_does_not_hold(site: Site) -> None:
    """Nobody has started `kedge broker watch`: the device stays connected, and health says why."""
    identity = site.enrol("lucky")
    with peer(site.port, site.out / "ca.pem", identity) as live:
        site.revoke("lucky")
        with pytest.raises(BrokerError, match="kedge broker watch"):
            site.revocations.enforce()
        assert not live.lost
        site.watch.look()
        wait_until(lambda: enforced(site), "the broker refuses it", 10)
        wait_until(lambda: live.lost, "its connection has ended", 5)
        live._client.loop_stop()
    assert site.revocations.enforce() == 0


def test_a_mosquitto_without_spare_file_descriptors_is_not_told_to_read_again(site: Site) -> None:
    """CVE-2017-7652: with no descriptor left to open its access rules, mosquitto goes on without any.

    Told in this state, 2.0.11 lets a device publish chunks and metadata.
    """
    assert site.process is not None
    before = resource.prlimit(site.process.pid, resource.RLIMIT_NOFILE)
    thief = site.enrol("d1")
    server = keep(site.folder / "ids", "server", *site.authority.issue_server())
    with (
        peer(site.port, site.out / "ca.pem", thief) as d1,
        peer(site.port, site.out / "ca.pem", server) as all_seeing,
    ):
        all_seeing.subscribe(f"{topics.ROOT}/#")
        used = max(int(x.name) for x in Path(f"/proc/{site.process.pid}/fd").iterdir()) + 1
        resource.prlimit(site.process.pid, resource.RLIMIT_NOFILE, (used, before[1]))
        site.enrol("gone")
        site.revoke("gone")
        with pytest.raises(ClientError, match="raise LimitNOFILE"):
            site.watch.look()
        publish_what_is_forbidden(d1)
        resource.prlimit(site.process.pid, resource.RLIMIT_NOFILE, before)
        site.watch.look()
        wait_until(lambda: enforced(site), "the list holds, now that there are descriptors", 10)
        publish_what_is_forbidden(d1)
        d1.publish(topics.hello(DeviceId("d1")), b"last")
        wait_until(lambda: any(payload == b"last" for _, payload in all_seeing.received), "it has come")
    assert [payload for _, payload in all_seeing.received] == [b"last"]


def publish_what_is_forbidden(device: Peer) -> None:
    """Publish as another device, a chunk, and metadata."""
    for topic in (
        topics.hello(DeviceId("d2")),
        topics.chunk(Digest.of(b"x")),
        topics.trust("timestamp.json"),
    ):
        device.publish(topic, b"evil", retain=True)


def test_clients_cannot_take_the_descriptors_that_a_reload_needs(tmp_path: Path) -> None:
    """A crowd connects, until mosquitto takes no more, and just then it reads its files again."""
    site = Site(tmp_path, connections=16)
    crowd: list[socket.socket] = []
    try:
        site.start()
        assert site.process is not None
        limit = 16 + broker_watch.SPARE_FILES
        resource.prlimit(site.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        with peer(site.port, site.out / "ca.pem", site.enrol("d1")) as d1:
            crowd += [socket.create_connection(("127.0.0.1", site.port), 5) for _ in range(2 * limit)]
            site.watch.look()
            wait_until(lambda: site.log().count("ACL pattern") > 2, "it has read its rules again")
            publish_what_is_forbidden(d1)
            assert "Unable" not in site.log()
        for connection in crowd:
            connection.close()
        server = keep(site.folder / "ids", "server", *site.authority.issue_server())
        with peer(site.port, site.out / "ca.pem", server) as all_seeing:
            all_seeing.subscribe(f"{topics.ROOT}/#")
            all_seeing.publish(topics.hello(DeviceId("d1")), b"last")
            wait_until(lambda: any(payload == b"last" for _, payload in all_seeing.received), "it has come")
        assert [payload for _, payload in all_seeing.received] == [b"last"]
    finally:
        for connection in crowd:
            connection.close()
        site.close()


def test_a_watch_takes_no_list_that_is_not_the_fleets_or_is_older(site: Site, tmp_path: Path) -> None:
    """Over plain HTTP somebody answers with a list of their own, last week's, rubbish, or nothing."""
    evil = FleetAuthority(tmp_path / "evil", site.clock)
    before = (site.out / "crl.pem").read_bytes()
    old = site.authority.revocation_list(0, 1, {})
    watch = Watch(site.out, site.url, lambda: None)
    for name, data in {
        "another authority's": evil.revocation_list(10**6, 10**6, {}),
        "an old one": old,
        "rubbish": b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        "nothing": b"",
    }.items():
        with pytest.raises(ClientError):
            watch._keep(data)
        assert (site.out / "crl.pem").read_bytes() == before, name
    with pytest.raises(ClientError, match="crl"):
        Watch(site.out, f"http://127.0.0.1:{free_port()}", lambda: None).look()
    with pytest.raises(ClientError, match="kedge broker config"):
        Watch(tmp_path / "none", site.url, lambda: None).look()


def test_a_broker_that_does_not_hear_is_told_again(site: Site) -> None:
    """The watch is killed between writing the list and telling mosquitto, or mosquitto is just away."""
    told: list[int] = []

    def deaf() -> None:
        told.append(1)
        raise ClientError("nobody there")

    watch = Watch(site.out, site.url, deaf)
    for _ in range(2):
        with pytest.raises(ClientError, match="nobody"):
            watch.look()
    assert len(told) == 2
    heard = Watch(site.out, site.url, lambda: told.append(1))
    heard.look()
    heard.look()
    assert len(told) == 3


def test_ways_to_tell_the_broker_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="does mosquitto run"):
        broker_watch.reload_by_pid(tmp_path)
    (tmp_path / "mosquitto.pid").write_text("4194399")
    with pytest.raises(ClientError, match="does mosquitto run"):
        broker_watch.reload_by_pid(tmp_path)
    (tmp_path / "mosquitto.pid").write_text(str(os.getpid()))
    with pytest.raises(ClientError, match="is no mosquitto"):
        broker_watch.reload_by_pid(tmp_path)
    (tmp_path / "mosquitto.pid").write_text("rubbish")
    with pytest.raises(ClientError, match=r"mosquitto\.pid"):
        broker_watch.reload_by_pid(tmp_path)
    broker_watch.reload_by_command([sys.executable, "-c", ""])
    with pytest.raises(ClientError, match="exit code 3"):
        broker_watch.reload_by_command([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(ClientError, match="no-such-command"):
        broker_watch.reload_by_command(["no-such-command"])


def test_a_broker_that_is_away_is_said_so(site: Site) -> None:
    doorman = CertificateDoorman(f"mqtts://127.0.0.1:{free_port()}", site.out / "ca.pem")
    with pytest.raises(BrokerError, match="127"):
        doorman.refuses(site.authority.issue_visit("kedge-probe"))
    with pytest.raises(BrokerError, match="127"):
        doorman.kick(DeviceId("d1"), lambda: site.authority.issue_visit("d1"))


def test_where_there_is_no_certificate_there_is_nothing_to_wait_for(site: Site) -> None:
    """The embedded broker asks the database at each login; a plain one on this machine knows nobody."""
    thrown: list[str] = []
    probe = site.authority.issue_visit("kedge-probe")
    for doorman in (PasswordDoorman(thrown.append), NoDoorman()):
        assert doorman.refuses(probe)
        doorman.kick(DeviceId("d1"), lambda: probe)
    assert thrown == ["d1"]
    with pytest.raises(BrokerError, match="not running"):
        EmbeddedBroker("127.0.0.1", free_port(), ("server", "secret"), lambda _name, _word: True).kick("d1")


def test_a_server_restored_from_a_backup_is_ahead_of_what_brokers_have_seen(tmp_path: Path) -> None:
    """Its database is of last week: the lists that it makes must not look older than the broker's."""
    database, clock = Database("sqlite://"), ManualClock()
    upgrade(database)
    authority = FleetAuthority(tmp_path, clock)
    seen = Revocations(database, clock, authority, FakeDoorman(), Live()).newest().number
    restored = Database("sqlite://")
    upgrade(restored)
    clock.seconds += 60
    assert Revocations(restored, clock, authority, FakeDoorman(), Live()).newest().number > seen


def test_lists_have_rising_numbers_and_seconds_and_hold_as_long_as_an_authority(tmp_path: Path) -> None:
    """OpenSSL takes the latest of two lists; one that has run out, or not begun, refuses the whole fleet."""
    database, clock = Database("sqlite://"), SystemClock()
    upgrade(database)
    authority = FleetAuthority(tmp_path, clock)
    first = Revocations(database, clock, authority, FakeDoorman(), Live())
    again = Revocations(database, clock, authority, FakeDoorman(), Live())  # the server has started again
    lists = [x509.load_pem_x509_crl(made.newest().pem) for made in (first, again)]
    numbers = [revocation_lists.number(x) for x in lists]
    assert clock.now() - 60 < numbers[0] < numbers[1]
    assert first.newest().number == numbers[0]
    assert lists[0].last_update_utc < lists[1].last_update_utc
    for one in lists:
        assert one.last_update_utc.timestamp() < clock.now() - 80_000
        assert one.next_update_utc is not None
        assert one.next_update_utc.timestamp() > clock.now() + 9 * 365 * 86400
    probe = x509.load_pem_x509_certificate(again.newest().probe.certificate)
    assert lists[1].get_revoked_certificate_by_serial_number(probe.serial_number) is not None
    database.close()


def test_written_again_the_set_up_keeps_what_is_revoked_and_adds_the_next_authority(tmp_path: Path) -> None:
    """A broker refuses everybody whose authority has no list, and lets everybody in whom none names."""
    clock, out = SystemClock(), tmp_path / "out"
    authority = FleetAuthority(tmp_path / "ca", clock)
    broker_config.write(out, authority, clock, port=8883)
    kept = authority.revocation_list(7, int(clock.now()), {authority.key_id: {42: "gone"}})
    (out / "crl.pem").write_bytes(kept)
    AuthorityFolder(tmp_path / "ca", clock).add_next()
    both = FleetAuthority(tmp_path / "ca", clock)
    broker_config.write(out, both, clock, port=8883)
    lists = revocation_lists.read((out / "crl.pem").read_bytes(), both.ca_pem)
    assert [revocation_lists.number(x) for x in lists] == [7, 0]
    assert lists[0].get_revoked_certificate_by_serial_number(42) is not None
    assert len(re.findall("BEGIN CERT", (out / "ca.pem").read_text())) == 2


def test_the_watch_as_a_command(site: Site) -> None:
    """Told to look once, it says what is wrong; otherwise it tries again."""
    runner = CliRunner()
    told = [sys.executable, "-c", ""]
    options = ["watch", "--out", str(site.out), "--once", "--reload", shlex.join(told), "--server"]
    site.enrol("by-command")
    site.revoke("by-command")
    done = runner.invoke(broker, [*options, site.url], catch_exceptions=False)
    assert "in force" in done.output
    assert isinstance(
        runner.invoke(broker, [*options, f"http://127.0.0.1:{free_port()}"]).exception, ClientError
    )


def test_a_doorman_says_why_it_cannot_visit(site: Site, tmp_path: Path) -> None:
    """The authority that the server has is not the one that the broker was set up with."""
    evil = FleetAuthority(tmp_path / "evil", site.clock)
    doorman = CertificateDoorman(f"mqtts://127.0.0.1:{site.port}", site.out / "ca.pem")
    with pytest.raises(BrokerError, match="127"):
        doorman.refuses(evil.issue_visit("kedge-probe"))
    with pytest.raises(BrokerError, match="127"):
        doorman.kick(DeviceId("d1"), lambda: evil.issue_visit("d1"))
    assert not doorman.refuses(site.authority.issue_visit("kedge-probe"))


def test_a_set_up_without_a_limit_of_clients_is_not_read_again(site: Site, tmp_path: Path) -> None:
    """Somebody has edited the configuration: how many clients may take descriptors is not known."""
    assert site.process is not None
    (tmp_path / "mosquitto.pid").write_text(str(site.process.pid))
    (tmp_path / "mosquitto.conf").write_text("listener 1\n")
    with pytest.raises(ClientError, match="max_connections"):
        broker_watch.reload_by_pid(tmp_path)
