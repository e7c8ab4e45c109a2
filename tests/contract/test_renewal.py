"""A device's certificate is renewed: what the server signs, what the agent takes, and what neither does."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent.adapters import answers, credentials, device_key
from device_agent.adapters.renewal import Renewal
from device_agent.adapters.state import Identity, StateFolder
from device_agent.errors import StateError, UnreachableError
from fleet.errors import KedgeError
from fleet.ids import DeviceId
from fleet.wire import vouching
from fleet.wire.enrolment import (
    BrokerAccess,
    EnrolReply,
    EnrolRequest,
    RenewReply,
    RenewRequest,
    TrustedAuthorities,
    public_pem,
)
from processes import free_port, wait_until
from server.errors import ForbiddenError, InvalidError
from server.services.identity.authority import FleetAuthority
from server.services.identity.authority_folder import AuthorityFolder
from server.services.people.roles import SYSTEM
from server_parts import Parts, parts
from sim_devices import TARGET, csr
from trust_world import START, ManualClock

DAY = 86400.0


@pytest.fixture
def kedge(tmp_path: Path) -> Parts:
    return parts(tmp_path)


def fresh() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def enrol(kedge: Parts, key: ec.EllipticCurvePrivateKey) -> str:
    """Enrol dev-a with a key; return its certificate."""
    _, token = kedge.claims.create(SYSTEM)
    reply = kedge.enrolment.enrol(
        EnrolRequest(claim=token.secret, csr_pem=csr(key), target=TARGET, name="dev-a")
    )
    assert isinstance(reply, EnrolReply)
    return reply.certificate_pem


def vouched_request(
    identity: ec.EllipticCurvePrivateKey, tls: ec.EllipticCurvePrivateKey, name: str = "dev-a"
) -> RenewRequest:
    """Return a request for a connection's key, which an identity key vouches for."""
    pem = csr(tls)
    signature = identity.sign(vouching.to_sign(vouching.RENEW, name, 1, pem), ec.ECDSA(hashes.SHA256()))
    word = vouching.vouched(public_pem(identity.public_key()), name, 1, signature)
    return RenewRequest(device_id="dev-a", csr_pem=pem, vouched=word)


def loaded(pem: str) -> x509.Certificate:
    """Return a certificate."""
    return x509.load_pem_x509_certificate(pem.encode())


def actions(kedge: Parts) -> list[str]:
    """Return the audit log's actions of dev-a, the newest first."""
    return [entry.action for entry in kedge.audit.entries(subject="device dev-a")]


def test_a_certificate_is_renewed_once_half_of_its_life_is_over(kedge: Parts) -> None:
    key = fresh()
    first = enrol(kedge, key)
    request = RenewRequest(device_id="dev-a", csr_pem=csr(key))
    kedge.clock.seconds += 14 * DAY
    assert kedge.enrolment.renew(request).certificate_pem == first
    assert actions(kedge) == ["device.enrol"]
    kedge.clock.seconds += 2 * DAY
    second = kedge.enrolment.renew(request).certificate_pem
    old, new = loaded(first), loaded(second)
    assert (new.public_key(), new.subject) == (old.public_key(), old.subject)
    assert new.not_valid_after_utc.timestamp() == int(kedge.clock.now()) + 30 * DAY
    assert kedge.enrolment.renew(request).certificate_pem == second
    assert actions(kedge) == ["device.renew", "device.enrol"]


def test_the_identity_key_vouches_for_the_next_connections_key(kedge: Parts) -> None:
    """The reply is lost, and the device asks again: it gets the very same certificate."""
    identity, tls = fresh(), fresh()
    enrol(kedge, identity)
    request = vouched_request(identity, tls)
    made = kedge.enrolment.renew(request).certificate_pem
    assert loaded(made).public_key() == tls.public_key()
    assert kedge.enrolment.renew(request).certificate_pem == made


def test_a_recorded_request_gets_nothing_new(kedge: Parts) -> None:
    """Somebody has an old connection's key from a thrown-away disk, and the request that went with it."""
    identity, old = fresh(), fresh()
    enrol(kedge, identity)
    recorded = vouched_request(identity, old)
    kedge.enrolment.renew(recorded)
    kedge.enrolment.renew(vouched_request(identity, fresh()))
    kedge.clock.seconds += 200 * DAY
    with pytest.raises(ForbiddenError, match="not certified before"):
        kedge.enrolment.renew(recorded)


def test_a_device_that_was_off_until_its_certificate_ended_gets_a_new_one(kedge: Parts) -> None:
    identity = fresh()
    enrol(kedge, identity)
    kedge.clock.seconds += 400 * DAY
    made = kedge.enrolment.renew(vouched_request(identity, fresh())).certificate_pem
    assert loaded(made).not_valid_after_utc.timestamp() > kedge.clock.now()


def test_only_the_key_that_enrolled_is_renewed(kedge: Parts) -> None:
    """Somebody who knows a device's name asks for a certificate of theirs; so does a revoked device."""
    key = fresh()
    enrol(kedge, key)
    kedge.clock.seconds += 60 * DAY
    stolen_word = vouched_request(key, fresh(), name="dev-b")
    wrong = msgspec.structs.replace(vouched_request(key, fresh()), csr_pem=csr())
    for request in (
        RenewRequest(device_id="dev-a", csr_pem=csr()),
        RenewRequest(device_id="dev-b", csr_pem=csr(key)),
        vouched_request(fresh(), fresh()),
        stolen_word,
        wrong,
    ):
        with pytest.raises(ForbiddenError):
            kedge.enrolment.renew(request)
    with pytest.raises(InvalidError):
        kedge.enrolment.renew(RenewRequest(device_id="#", csr_pem=csr(key)))
    kedge.devices.revoke(SYSTEM, "dev-a")
    with pytest.raises(ForbiddenError):
        kedge.enrolment.renew(RenewRequest(device_id="dev-a", csr_pem=csr(key)))


class Site:
    """An enrolled device's folder, and a server that answers every renewal as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder / "ca", ManualClock()
        self.authority = FleetAuthority(self.folder, self.clock)
        self.state = StateFolder(folder / "agent")
        self.state.make()
        self.identity = device_key.ensure(self.state.key)
        tls = credentials.next_key(self.state)
        certificate = self.authority.sign_device(device_key.certificate_request(tls), DeviceId("dev-a"))
        credentials.keep(self.state, tls, certificate)
        self.first = self.state.tls.read_bytes()
        self.state.ca.write_bytes(self.authority.ca_pem)
        self.asked: list[RenewRequest] = []
        self.looked = 0
        self.status = 200
        self.renewed = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.looked += 1
                self.send_response(site.status if self.path == "/api/v1/authorities" else 404)
                self.end_headers()
                self.wfile.write(site.said())

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

    def said(self) -> bytes:
        """Return what the real server would say of its authorities."""
        trusted = tuple(x.key_id for x in self.authority.members)
        return msgspec.json.encode(TrustedAuthorities(signs=trusted[0], trusted=trusted))

    def answer(self, request: RenewRequest) -> bytes:
        """Return what the real server would, 20 days after the first certificate."""
        return self.reply(self.sign(request, 20))

    def sign(self, request: RenewRequest, days: float, by: FleetAuthority | None = None) -> str:
        """Return what an authority signs whose clock shows so many days after the first certificate."""
        self.clock.seconds = START + days * DAY
        return (by or self.authority).sign_device(request.csr_pem, DeviceId(request.device_id))

    def reply(self, certificate: str, by: FleetAuthority | None = None) -> bytes:
        """Return a reply with this certificate."""
        authority = by or self.authority
        return msgspec.json.encode(
            RenewReply(
                certificate_pem=certificate,
                ca_pem=authority.ca_pem.decode(),
                links_pem=authority.links_pem.decode(),
            )
        )

    def renewal(self, days: float = 20.0) -> Renewal:
        """Return the agent's part, so many days after enrolment."""
        return Renewal(self.state, lambda: START + days * DAY, self.renewed.set)

    def close(self) -> None:
        """Stop the server."""
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(("days", "due"), [(0, False), (14, False), (16, True), (200, True), (-20000, False)])
def test_the_agent_asks_in_the_second_half_of_its_certificates_life(
    site: Site, days: float, due: bool
) -> None:
    """A clock at 1970 sees a certificate of the far future, and leaves it alone."""
    assert site.renewal(days).due() is due


def test_the_agent_puts_key_and_certificate_in_place_by_itself(site: Site) -> None:
    renewal = site.renewal(20)
    renewal.start()
    assert site.renewed.wait(10)
    renewal.stop()
    (request,) = site.asked
    assert request.vouched is not None
    vouching.check(request.vouched, vouching.RENEW, "dev-a", request.csr_pem)
    assert request.vouched.key_pem == site.identity.public_pem()
    old, new = x509.load_pem_x509_certificate(site.first), credentials.present(site.state)
    assert new.not_valid_after_utc > old.not_valid_after_utc
    assert device_key.load(site.state.tls).public_key() == new.public_key() != old.public_key()
    assert not site.state.tls_next.exists()
    assert site.state.tls.stat().st_mode & 0o077 == 0


def test_a_fault_that_nobody_knows_of_ends_no_renewals(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever exception somebody on the line finds a way to: it is told, and the thread looks again."""

    def fail() -> None:
        raise LookupError("nobody knows of it")

    renewal = Renewal(site.state, lambda: START + 20 * DAY, fail)
    renewal.start()
    wait_until(lambda: "nobody knows of it" in caplog.text, "it is told")
    assert renewal._thread.is_alive()
    renewal.stop()


def test_a_reply_that_is_lost_is_asked_for_with_the_same_key(site: Site) -> None:
    """The power is cut after the request: another key would be one that nobody has certified."""
    site.status = 503
    for _ in range(2):
        with pytest.raises(UnreachableError):
            site.renewal().renew()
    first, second = (x509.load_pem_x509_csr(x.csr_pem.encode()) for x in site.asked)
    assert first.public_key() == second.public_key()


def test_the_agent_asks_nothing_while_there_is_time(site: Site) -> None:
    renewal = site.renewal(1)
    renewal.start()
    renewal.stop()
    wait_until(lambda: not renewal._thread.is_alive(), "it has looked once")
    assert site.asked == []


def test_a_certificate_of_somebody_else_is_not_taken(site: Site, tmp_path: Path) -> None:
    """Over plain HTTP anybody may answer: with another authority's certificate, another key's, or rubbish."""
    evil = FleetAuthority(tmp_path / "evil", site.clock)
    answers = {
        "another authority": lambda request: site.reply(site.sign(request, 20, evil)),
        "an authority of its own": lambda request: site.reply(site.sign(request, 20, evil), evil),
        "another key": lambda _request: site.reply(site.authority.sign_device(csr(), DeviceId("dev-a"))),
        "no certificate": lambda _request: site.reply("rubbish"),
        "no authority": lambda request: msgspec.json.encode(
            RenewReply(certificate_pem=site.sign(request, 20))
        ),
        "no reply": lambda _request: json.dumps({"hello": 1}).encode(),
    }
    for name, answer in answers.items():
        site.answer = answer  # type: ignore[method-assign]  # this server says what the test wants
        with pytest.raises(KedgeError):
            site.renewal().renew()
        assert site.state.tls.read_bytes() == site.first, name
    assert not site.renewed.is_set()


P256, UNKNOWN_CURVE = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106")
VERSION_3, VERSION_4 = bytes.fromhex("a003020102"), bytes.fromhex("a003020103")


def altered(certificate: str, old: bytes, new: bytes) -> str:
    """Return a certificate with other bytes in it."""
    der = x509.load_pem_x509_certificate(certificate.encode()).public_bytes(serialization.Encoding.DER)
    assert old in der
    text = base64.encodebytes(der.replace(old, new)).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("field", ["certificate_pem", "ca_pem", "links_pem"])
@pytest.mark.parametrize(
    ("old", "new"), [(P256, UNKNOWN_CURVE), (VERSION_3, VERSION_4)], ids=["curve", "version"]
)
def test_a_certificate_that_the_library_does_not_know_ends_no_thread(
    site: Site, field: str, old: bytes, new: bytes
) -> None:
    """Somebody on the line answers with a key on an odd curve, or a certificate of a version to come.

    The library has exceptions of its own for these: uncaught, one answer would end the thread that renews,
    and the device would be gone when its certificate ends.
    """

    def answer(request: RenewRequest) -> bytes:
        ca = site.authority.ca_pem.decode()
        good = {"certificate_pem": site.sign(request, 20), "ca_pem": ca, "links_pem": ca}
        return msgspec.json.encode({**good, field: altered(good[field], old, new)})

    site.answer = answer  # type: ignore[method-assign]  # this server says what the test wants
    before = site.state.ca.read_bytes()
    with contextlib.suppress(UnreachableError):  # an odd link is passed over
        site.renewal().renew()
    assert site.asked
    assert site.state.ca.read_bytes() == before
    assert site.renewed.is_set() == (field == "links_pem" and old == P256)


def test_an_answer_without_end_is_hung_up_on(site: Site) -> None:
    """Somebody on the line answers with more and more bytes, to fill the device's memory."""
    site.answer = lambda request: bytes(answers.LIMIT + len(request.csr_pem))  # type: ignore[method-assign]  # this server says what the test wants
    with pytest.raises(UnreachableError, match="expected at most"):
        site.renewal().renew()
    assert site.state.tls.read_bytes() == site.first


@pytest.mark.parametrize(("server_days", "says"), [(-300, "ends after"), (300, "holds now")])
def test_a_server_whose_clock_is_wrong_takes_no_good_certificate_away(
    site: Site, server_days: float, says: str
) -> None:
    """Its clock is a year behind, or ahead: what it signs has ended, or has not begun, for everybody else."""
    site.answer = lambda request: site.reply(site.sign(request, server_days))  # type: ignore[method-assign]  # a wrong clock
    with pytest.raises(UnreachableError, match=says):
        site.renewal().renew()
    assert site.state.tls.read_bytes() == site.first


def test_a_device_whose_clock_is_wrong_takes_what_the_server_signs(site: Site) -> None:
    """Its battery is flat and it thinks it is 1970: that judges no certificate."""
    site.renewal(-20000).renew()
    assert site.renewed.is_set()


def test_a_device_that_was_away_for_two_changes_of_authority_follows_the_links(site: Site) -> None:
    """The fleet went from one authority to the next, and to another: each is certified by the one before."""
    folder = AuthorityFolder(site.folder, site.clock)
    for _ in range(2):
        folder.add_next()
        folder.switch()
        folder.drop_old()
    newest = FleetAuthority(site.folder, site.clock)
    site.answer = lambda request: site.reply(site.sign(request, 20, newest), newest)  # type: ignore[method-assign]  # the new authority
    site.renewal().renew()
    assert site.state.ca.read_bytes() == newest.ca_pem
    credentials.present(site.state).verify_directly_issued_by(x509.load_pem_x509_certificate(newest.ca_pem))


def test_a_device_renews_soon_when_the_fleet_changes_its_authority(site: Site) -> None:
    """First the next authority is there, then it signs: each is followed once, and spread over a while."""
    folder, waited = AuthorityFolder(site.folder, site.clock), threading.Event()

    def chance() -> float:
        waited.set()
        return 0.0

    renewal = Renewal(site.state, lambda: START + 2 * DAY, site.renewed.set, chance)
    assert renewal.behind() is None
    for step in (folder.add_next, folder.switch):
        step()
        site.authority = FleetAuthority(site.folder, site.clock)
        site.answer = lambda request: site.reply(site.sign(request, 2 + len(site.asked)))  # type: ignore[method-assign]  # its clock goes on
        renewal._follow(3600.0)
        assert site.renewed.is_set()
        assert waited.is_set()
        assert renewal.behind() is None
        for event in (site.renewed, waited):
            event.clear()
    assert credentials.issuer(credentials.present(site.state)) == site.authority.key_id


def test_a_device_that_the_broker_knows_no_more_does_not_wait(site: Site) -> None:
    """The old authority was dropped while it was away."""
    folder = AuthorityFolder(site.folder, site.clock)
    for step in (folder.add_next, folder.switch, folder.drop_old):
        step()
    site.authority = FleetAuthority(site.folder, site.clock)
    site.answer = lambda request: site.reply(site.sign(request, 3))  # type: ignore[method-assign]  # as its own clock
    renewal = Renewal(site.state, lambda: START + 3 * DAY, site.renewed.set, lambda: 1e9)
    renewal.start()
    assert site.renewed.wait(10)
    renewal.stop()


def test_a_lie_about_the_authorities_costs_one_renewal(site: Site) -> None:
    """Over plain HTTP anybody may say that there is another authority: what comes of it proves itself."""
    lie = msgspec.json.encode(TrustedAuthorities(signs="ab" * 20, trusted=("ab" * 20,)))
    site.said = lambda: lie  # type: ignore[method-assign]  # somebody on the line
    site.answer = lambda request: site.reply(site.sign(request, 3))  # type: ignore[method-assign]  # as its own clock
    renewal = site.renewal(3)
    for _ in range(3):
        renewal._follow(0.0)
    assert len(site.asked) == 1
    said = [b"", b"[]", b'{"signs": 1}', bytes(answers.LIMIT + 1)]
    site.said = said.pop  # type: ignore[method-assign]  # somebody on the line
    while said:
        renewal._follow(0.0)
    site.status = 503
    renewal._follow(0.0)
    assert len(site.asked) == 1


def test_a_refusal_or_no_answer_leaves_everything_as_it_was(site: Site) -> None:
    site.status = 403
    with pytest.raises(UnreachableError, match="403"):
        site.renewal().renew()
    site.enrolled(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnreachableError):
        site.renewal().renew()
    assert site.state.tls.read_bytes() == site.first
    site.state.tls.write_text("damaged")
    with pytest.raises(StateError, match=r"tls\.pem"):
        site.renewal().due()
