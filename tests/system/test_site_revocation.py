"""A device is revoked whose connection is to its site's broker: the server cannot reach that, the watch can.

The site's mosquitto is real and set up by `kedge broker config --site`; the fleet's broker is out of reach.
"""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from brokers import mosquitto_binary
from fake_doorman import FakeDoorman
from fleet.ids import DeviceId
from fleet.wire import topics
from mtls import Identity, keep, peer, request
from processes import KEDGE, Process, free_port, listens, wait_until
from server.adapters.clock import SystemClock
from server.adapters.doorman import CertificateDoorman
from server.commands.broker import broker
from server.db.tables import Device
from server.errors import ClientError
from server.services.broker import broker_config, broker_watch, site_config, site_visits
from server.services.broker.broker_watch import Watch
from server.services.identity import revocation_lists
from server.services.identity.authority import FleetAuthority
from server.services.identity.authority_folder import AuthorityFolder
from server.services.identity.revocations import Revocations
from server.services.live import Live
from server_parts import migrated
from sim_devices import TARGET


class Site:
    """A site's mosquitto, the fleet's list over HTTP, and the watch between the two as a process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.port = folder, SystemClock(), free_port()
        self.data, self.out = folder / "data", folder / "site"
        self.files = self.write()
        self.authority = FleetAuthority(self.data / "keys", self.clock)
        self.database = migrated(f"sqlite:///{folder}/list.db")
        bridges = partial(site_config.revoked, self.data / "sites")
        self.revocations = Revocations(
            self.database, self.clock, self.authority, FakeDoorman(), Live(), bridges
        )
        self.http = _serve(self.revocations)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        command = [mosquitto_binary(), "-c", str(self.out / "mosquitto.conf")]
        self.mosquitto = process = Process(command, folder / "log")
        wait_until(lambda: listens(self.port) or not process.running(), "mosquitto listens")
        assert process.running(), process.output()
        options = ["--out", str(self.out), "--server", self.url, "--every", "0.2"]
        self.watch = Process([KEDGE, "broker", "watch", *options], folder / "watch.log")

    def write(self, *more: str) -> list[Path]:
        """Write the set-up as the how-to says; the fleet's broker is nowhere."""
        asked = ["config", "--data", str(self.data), "--out", str(self.out), "--host", "127.0.0.1"]
        asked += ["--port", str(self.port), "--site", "plant", "--device", "cam", "--device", "door"]
        asked += ["--uplink", f"mqtts://127.0.0.1:{free_port()}", "--json", *more]
        done = CliRunner().invoke(broker, asked, catch_exceptions=False)
        config = self.out / "mosquitto.conf"
        # Started by root, mosquitto becomes a user who may not read a test's folder.
        config.write_text(f"user root\n{config.read_text()}")
        return [Path(x) for x in json.loads(done.stdout)["files"]]

    def enrol(self, name: str) -> Identity:
        """Give a device a certificate, as enrolment does."""
        key, csr = request()
        certificate = self.authority.sign_device(csr, DeviceId(name))
        with self.database.write() as session:
            session.add(Device(id=name, target=TARGET, enrolled_at=0.0))
            self.revocations.issued(session, name, certificate)
        return keep(self.folder / "ids", name, key, certificate.encode())

    def revoke(self, name: str) -> None:
        """Revoke a device, as the service does."""
        with self.database.write() as session:
            device = session.get_one(Device, name)
            device.revoked_at = self.clock.now()
            session.add(device)
            self.revocations.revoke(session, name)

    def tls(self, identity: Identity) -> ssl.SSLSocket:
        """Connect, and say nothing yet."""
        context = ssl.create_default_context(cafile=str(self.out / "ca.pem"))
        context.load_cert_chain(identity.certificate, identity.key)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        plain = socket.create_connection(("127.0.0.1", self.port), 5)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def close(self) -> None:
        """End everything."""
        self.watch.kill()
        self.mosquitto.kill()
        self.http.shutdown()
        self.http.server_close()
        self.database.close()


def _serve(revocations: Revocations) -> ThreadingHTTPServer:
    """Serve the list as the API does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(revocations.newest().pem)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            del format, args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    return http


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site-revocation"))
    try:
        yield made
    finally:
        made.close()


def test_a_revoked_device_loses_its_connection_to_the_sites_broker_and_does_not_come_back(site: Site) -> None:
    """A camera is stolen with its connection open; the door beside it notices nothing."""
    camera, door = site.enrol("cam"), site.enrol("door")
    ca = site.out / "ca.pem"
    with peer(site.port, ca, camera) as live, peer(site.port, ca, door) as bystander:
        site.watch.wait_for_output("in force", 20)
        assert not live.lost
        site.revoke("cam")
        wait_until(lambda: live.lost, "its connection has ended", 10)
        live._client.loop_stop()
        assert not bystander.lost
        bystander.publish(topics.hello(DeviceId("door")), b"still here")
    with pytest.raises(ssl.SSLError, match="REVOKED"):
        site.tls(camera).recv(1)
    site.tls(door).close()
    site.watch.wait_for_output("ended what connection cam had", 5)


def test_one_that_had_not_said_who_it_is_ends_with_the_second_visit(site: Site) -> None:
    """A thief opens a connection, waits until it is revoked, and only then says who it is."""
    identity = site.enrol("sleeper")
    now = [site.clock.now()]

    class Later:
        def now(self) -> float:
            """Return the time that the test wants."""
            return now[0]

    doorman = CertificateDoorman(f"mqtts://127.0.0.1:{site.port}", site.out / "ca.pem")
    site.watch.kill()
    visits = site_visits.Visits(site.out, Later(), doorman, time.sleep, lambda _name: None)
    watch = Watch(site.out, site.url, lambda: broker_watch.reload_by_pid(site.out), visits)
    with site.tls(identity) as sleeping:
        site.revoke("sleeper")
        watch.look()
        sleeping.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02d1")
        assert sleeping.recv(4) == b"\x20\x02\x00\x00"
        now[0] += site_visits.LATE_CONNECT + 1
        watch.look()
        assert sleeping.recv(4) == b""
    before = (site.out / "crl.pem").read_bytes()
    now[0] += site_visits.LATE_CONNECT + 1
    assert not watch.look()
    assert (site.out / "crl.pem").read_bytes() == before


def test_who_the_visitor_is_stays_with_the_sites_broker(site: Site, tmp_path: Path) -> None:
    """Its key is its owner's alone; it stays when the set-up is written again, as does what is revoked."""
    _, key = site_visits.visitor_files(site.out.resolve())
    assert key in site.files
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    revoked = (site.out / "crl.pem").read_bytes()
    site.write()
    assert key.read_bytes() == before
    fleets = revocation_lists.read(revoked, site.authority.ca_pem)
    assert revocation_lists.read((site.out / "crl.pem").read_bytes(), site.authority.ca_pem) == fleets
    assert key.read_bytes() not in (site.out / "clients.pem").read_bytes()
    elsewhere = broker_config.write(tmp_path, site.authority, site.clock, port=free_port())
    assert not (tmp_path / site_visits.FOLDER).exists()
    assert "clients.pem" not in elsewhere[0].read_text()


def test_a_stolen_bridges_certificate_is_revoked_and_the_next_one_is_not(site: Site) -> None:
    """The site's machine was carried off: its set-up is written for another, and the old one's key ends."""

    def bridge(name: str) -> Identity:
        files = (site.out / "bridge.key.pem").read_bytes(), (site.out / "bridge.pem").read_bytes()
        return keep(site.folder / "ids", name, *files)

    stolen = bridge("stolen")
    site.write()
    site.tls(stolen).close()  # a set-up that is merely written again takes nothing away
    site.write("--revoke-bridge")
    site.watch.kill()
    visits = site_visits.Visits(site.out, site.clock, FakeDoorman(), time.sleep, lambda _name: None)
    Watch(site.out, site.url, lambda: broker_watch.reload_by_pid(site.out), visits).look()

    def refused() -> bool:
        try:
            site.tls(stolen).close()
        except ssl.SSLError as error:
            return "REVOKED" in (error.reason or "")
        return False

    wait_until(refused, "the stolen one is refused", 10)
    site.tls(bridge("new")).close()
    (kept,) = site_config.known(site.data / "sites")
    *earlier, last = kept.bridges
    assert [x.revoked for x in earlier] == [True] * len(earlier)
    assert not last.revoked
    alone = CliRunner().invoke(broker, ["config", "--out", str(site.out), "--revoke-bridge"])
    assert alone.exit_code == 2


def test_a_broker_that_does_not_read_its_lists_is_said_so(site: Site, tmp_path: Path) -> None:
    """The signal goes nowhere: nobody is visited as long as a thrown out device could come straight back."""
    deaf, slept, told = FakeDoorman(), list[float](), list[str]()
    deaf.up_to_date = False
    for name in ("ca.pem", "crl.pem"):
        (tmp_path / name).write_bytes((site.out / name).read_bytes())
    visits = site_visits.Visits(tmp_path, site.clock, deaf, slept.append, told.append)
    watch = Watch(tmp_path, site.url, lambda: None, visits)
    with pytest.raises(ClientError, match="has not read its revocation lists"):
        watch.look()
    assert deaf.kicked == []
    assert 5 <= sum(slept) <= 20
    deaf.up_to_date = True
    watch.look()
    assert {name for name, _ in deaf.kicked} == {"cam", "sleeper"} == set(told)


def test_names_in_lists_are_device_ids_or_nobody(tmp_path: Path) -> None:
    """An entry says whose certificate it was; one that says something else names nobody."""
    clock = SystemClock()
    folder = AuthorityFolder(tmp_path, clock)
    by = folder.load("ca")
    assert by is not None
    made = revocation_lists.make(by, 1, 1, {1: "cam-7", 2: "", 3: "#", 4: "CAM"})
    lists = revocation_lists.read(made, site_visits.certificate_pem(by))
    assert revocation_lists.names(lists) == {"cam-7"}
