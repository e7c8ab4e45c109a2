"""A device's certificate is renewed: what the server signs, what the agent takes, and what neither does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent.adapters.renewal import Renewal
from device_agent.adapters.state import Identity, StateFolder
from device_agent.errors import StateError, UnreachableError
from fleet.errors import KedgeError
from fleet.ids import DeviceId
from fleet.wire.enrolment import BrokerAccess, EnrolRequest, RenewReply, RenewRequest
from processes import free_port, wait_until
from server.errors import ForbiddenError, InvalidError
from server.services.authority import FleetAuthority
from server.services.roles import SYSTEM
from server_parts import Parts, parts
from sim_devices import TARGET, csr
from trust_world import START, ManualClock

DAY = 86400.0


@pytest.fixture
def kedge(tmp_path: Path) -> Parts:
    return parts(tmp_path)


def enrol(kedge: Parts, key: ec.EllipticCurvePrivateKey) -> str:
    """Enrol dev-a with a key; return its certificate."""
    _, token = kedge.claims.create(SYSTEM)
    request = EnrolRequest(claim=token.secret, csr_pem=csr(key), target=TARGET, name="dev-a")
    return kedge.enrolment.enrol(request).certificate_pem


def actions(kedge: Parts) -> list[str]:
    """Return the audit log's actions of dev-a, the newest first."""
    return [entry.action for entry in kedge.audit.entries(subject="device dev-a")]


def test_a_certificate_is_renewed_for_its_key_once_half_of_its_life_is_over(kedge: Parts) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first = enrol(kedge, key)
    request = RenewRequest(device_id="dev-a", csr_pem=csr(key))
    kedge.clock.seconds += 40 * DAY
    assert kedge.enrolment.renew(request).certificate_pem == first
    assert actions(kedge) == ["device.enrol"]
    kedge.clock.seconds += 10 * DAY
    second = kedge.enrolment.renew(request).certificate_pem
    old, new = (x509.load_pem_x509_certificate(x.encode()) for x in (first, second))
    assert (new.public_key(), new.subject) == (old.public_key(), old.subject)
    assert new.not_valid_after_utc.timestamp() == int(kedge.clock.now()) + 90 * DAY
    assert kedge.enrolment.renew(request).certificate_pem == second
    assert actions(kedge) == ["device.renew", "device.enrol"]


def test_a_device_that_was_off_until_its_certificate_ended_gets_a_new_one(kedge: Parts) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    enrol(kedge, key)
    kedge.clock.seconds += 400 * DAY
    made = kedge.enrolment.renew(RenewRequest(device_id="dev-a", csr_pem=csr(key))).certificate_pem
    assert x509.load_pem_x509_certificate(made.encode()).not_valid_after_utc.timestamp() > kedge.clock.now()


def test_only_the_key_that_enrolled_is_renewed(kedge: Parts) -> None:
    """Somebody who knows a device's name asks for a certificate of theirs; so does a revoked device."""
    key = ec.generate_private_key(ec.SECP256R1())
    enrol(kedge, key)
    kedge.clock.seconds += 60 * DAY
    with pytest.raises(ForbiddenError):
        kedge.enrolment.renew(RenewRequest(device_id="dev-a", csr_pem=csr()))
    with pytest.raises(ForbiddenError):
        kedge.enrolment.renew(RenewRequest(device_id="dev-b", csr_pem=csr(key)))
    with pytest.raises(InvalidError):
        kedge.enrolment.renew(RenewRequest(device_id="#", csr_pem=csr(key)))
    kedge.devices.revoke(SYSTEM, "dev-a")
    with pytest.raises(ForbiddenError):
        kedge.enrolment.renew(RenewRequest(device_id="dev-a", csr_pem=csr(key)))


class Site:
    """An enrolled device's folder, and a server that answers every renewal as it is told."""

    def __init__(self, folder: Path) -> None:
        self.authority = FleetAuthority(folder / "ca", ManualClock())
        self.state = StateFolder(folder / "agent")
        self.state.make()
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self.state.key.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        self.first = self.authority.sign_device(csr(key), DeviceId("dev-a"))
        self.state.certificate.write_text(self.first)
        self.state.ca.write_bytes(self.authority.ca_pem)
        self.asked: list[RenewRequest] = []
        self.status = 200
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                site.asked.append(msgspec.json.decode(body, type=RenewRequest))
                self.send_response(site.status if self.path == "/api/v1/renew" else 404)
                self.end_headers()
                self.wfile.write(site.answer(site.asked[-1]))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
                del format, args

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()
        self.enrolled(f"http://127.0.0.1:{self.http.server_address[1]}")

    def enrolled(self, server: str) -> None:
        """Say which server the device enrolled with."""
        access = BrokerAccess(url="mqtts://127.0.0.1:1")
        self.state.save_identity(Identity(device_id="dev-a", server=server, target=TARGET, broker=access))

    def answer(self, request: RenewRequest) -> bytes:
        """Return what the real server would."""
        return self.reply(self.authority.sign_device(request.csr_pem, DeviceId(request.device_id)))

    @staticmethod
    def reply(certificate: str) -> bytes:
        """Return a reply with this certificate."""
        return msgspec.json.encode(RenewReply(certificate_pem=certificate))

    def renewal(self, days: float = 0.0) -> Renewal:
        """Return the agent's part, so many days after enrolment."""
        return Renewal(self.state, lambda: START + days * DAY, self.renewed.set)

    renewed = threading.Event()

    def close(self) -> None:
        """Stop the server."""
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.renewed = threading.Event()
    yield made
    made.close()


@pytest.mark.parametrize(("days", "due"), [(0, False), (44, False), (46, True), (200, True), (-20000, False)])
def test_the_agent_asks_in_the_second_half_of_its_certificates_life(
    site: Site, days: float, due: bool
) -> None:
    """A clock at 1970 sees a certificate of the far future, and leaves it alone."""
    assert site.renewal(days).due() is due


def test_the_agent_puts_the_new_certificate_in_place_by_itself(site: Site) -> None:
    renewal = site.renewal(50)
    renewal.start()
    assert site.renewed.wait(10)
    renewal.stop()
    assert site.state.certificate.read_text() != site.first
    assert [request.device_id for request in site.asked] == ["dev-a"]


def test_the_agent_asks_nothing_while_there_is_time(site: Site) -> None:
    renewal = site.renewal(1)
    renewal.start()
    renewal.stop()
    wait_until(lambda: not renewal._thread.is_alive(), "it has looked once")
    assert site.asked == []


def test_a_certificate_of_somebody_else_is_not_taken(site: Site, tmp_path: Path) -> None:
    """Over plain HTTP anybody may answer: with another authority's certificate, another key's, or rubbish."""
    evil = FleetAuthority(tmp_path / "evil", ManualClock())
    answers = {
        "another authority": lambda request: site.reply(evil.sign_device(request.csr_pem, DeviceId("dev-a"))),
        "another key": lambda _request: site.reply(site.authority.sign_device(csr(), DeviceId("dev-a"))),
        "no certificate": lambda _request: site.reply("rubbish"),
        "no reply": lambda _request: json.dumps({"hello": 1}).encode(),
    }
    for name, answer in answers.items():
        site.answer = answer  # type: ignore[method-assign]  # this server says what the test wants
        with pytest.raises(KedgeError):
            site.renewal().renew()
        assert site.state.certificate.read_text() == site.first, name
    assert not site.renewed.is_set()


def test_a_refusal_or_no_answer_leaves_everything_as_it_was(site: Site) -> None:
    site.status = 403
    with pytest.raises(UnreachableError, match="403"):
        site.renewal().renew()
    site.enrolled(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnreachableError):
        site.renewal().renew()
    assert site.state.certificate.read_text() == site.first
    site.state.certificate.write_text("damaged")
    with pytest.raises(StateError, match="certificate"):
        site.renewal().due()
