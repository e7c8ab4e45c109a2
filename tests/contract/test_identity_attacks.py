"""Attacks on what a device is called, and on who gets a certificate in its name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from device_side import enrol_request, signed_request
from fleet.errors import KedgeError
from fleet.ids import DeviceId
from fleet.wire.enrolment import EnrolReply, EnrolRequest, RenewRequest, key_fingerprint
from server.errors import ConflictError, ForbiddenError, InvalidError
from server.services.devices.devices import DeviceFilter
from server.services.identity.admission import NewKey
from server.services.identity.authority import FleetAuthority
from server.services.people.roles import SYSTEM
from server_parts import Parts, parts
from sim_devices import TARGET, csr
from trust_world import ManualClock

DAY = 86400.0


@pytest.fixture
def kedge(tmp_path: Path) -> Parts:
    return parts(tmp_path)


def fresh() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def claim(kedge: Parts, quota: int = 1) -> str:
    """Return the secret of a claim."""
    return kedge.claims.create(SYSTEM, quota=quota)[1].secret


def greedy(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a request that asks for everything: other names, an authority's rights, a broker's."""
    name = [
        x509.NameAttribute(NameOID.COMMON_NAME, "kedge-server"),
        x509.NameAttribute(NameOID.COMMON_NAME, "d2"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "#"),
    ]
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    hosts = [x509.DNSName("localhost"), x509.DNSName("d2")]
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    other = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier("http://evil.example/ca")
    )
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(name))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([server, client]), critical=False)
        .add_extension(x509.AuthorityInformationAccess([other]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


def test_a_request_that_asks_for_more_gets_what_every_device_gets(tmp_path: Path) -> None:
    """It names the server, another device, localhost and an authority's rights, in subject and extensions."""
    authority = FleetAuthority(tmp_path, ManualClock())

    plain, more = (
        x509.load_pem_x509_certificate(authority.sign_device(pem, DeviceId("d1")).encode())
        for pem in (csr(), greedy(fresh()))
    )
    assert more.subject == plain.subject
    assert [x.oid for x in more.extensions] == [x.oid for x in plain.extensions]
    for extension in plain.extensions:
        assert more.extensions.get_extension_for_oid(extension.oid).value == extension.value
    with pytest.raises(x509.ExtensionNotFound):
        more.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_an_rsa_key_neither_enrols_nor_renews(kedge: Parts) -> None:
    """A key that is factored in an afternoon, or any of a kind that devices do not use."""
    secret, key = claim(kedge), fresh()
    weak = [_request_of(rsa.generate_private_key(65537, bits)) for bits in (1024, 2048)]
    for pem in weak:
        with pytest.raises(InvalidError, match="P-256"):
            kedge.enrolment.enrol(EnrolRequest(claim=secret, csr_pem=pem, target=TARGET, name="weak"))
    kedge.enrolment.enrol(enrol_request(key, secret, "strong"))
    for pem in weak:
        with pytest.raises(InvalidError, match="P-256"):
            kedge.enrolment.renew(RenewRequest(device_id="strong", csr_pem=pem))


def _request_of(key: rsa.RSAPrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


#: Wildcards and separators; other alphabets' look-alikes of a and 1; what cannot be seen; the server's own.
ODD = (
    *("+", "#", "a/b", "a+", "a\n", "a\x00", " a", "A", "-a", "..", "$sys", "a.b", "site.plant", "a" * 64),
    *("\u00e4", "\uff41", "\u0430", "a\u0301", "a\u200b", "\uff11"),
    *("kedge-server", "kedge-probe"),
)


def test_no_name_means_anything_but_one_device(kedge: Parts) -> None:
    """Somebody wishes for a name that is a pattern, or looks like another's: refused wherever one is said."""
    asked = EnrolRequest(claim=claim(kedge), csr_pem=csr(), target=TARGET)
    listed = NewKey(fingerprint="ab" * 32, id="", target=TARGET)
    for name in ODD:
        for attempt in (
            partial(kedge.enrolment.enrol, msgspec.structs.replace(asked, name=name)),
            partial(kedge.enrolment.renew, RenewRequest(device_id=name, csr_pem=asked.csr_pem)),
            partial(kedge.admission.register, SYSTEM, [msgspec.structs.replace(listed, id=name)]),
            partial(kedge.admission.approve, SYSTEM, name, "ab" * 32),
        ):
            with pytest.raises(KedgeError):
                attempt()
    assert kedge.claims.page()[0].used == 0


def test_a_recorded_enrolment_makes_no_old_key_good_again(kedge: Parts) -> None:
    """A disk was thrown away with a connection's key, long replaced; somebody has the enrolment on record.

    Sent again, it is the device's own word, and its claim's: but for a key that has had its time.
    """
    identity, secret = fresh(), claim(kedge)
    recorded = enrol_request(identity, secret, "cam")
    first = kedge.enrolment.enrol(recorded)
    assert isinstance(first, EnrolReply)
    again = kedge.enrolment.enrol(recorded)  # the device's own, whose answer was lost
    assert isinstance(again, EnrolReply)
    assert again.certificate_pem == first.certificate_pem
    kedge.clock.seconds += 16 * DAY
    renewed = kedge.enrolment.renew(signed_request(identity, "cam")).certificate_pem
    for days in (0, 1, 300):
        kedge.clock.seconds += days * DAY
        with pytest.raises(ForbiddenError, match="not certified before"):
            kedge.enrolment.enrol(recorded)
        assert kedge.devices.get("cam").certificate_pem == renewed


def test_who_was_decommissioned_never_comes_back_with_the_same_key(kedge: Parts) -> None:
    """It was sold with its chip in it. Whoever has it now has a right to enrol, by mistake or by fraud."""
    key, secret = fresh(), claim(kedge)
    kedge.enrolment.enrol(enrol_request(key, secret, "cam"))
    kedge.devices.decommission(SYSTEM, "cam", now=True)
    listed = NewKey(fingerprint=key_fingerprint(key.public_key()), id="cam", target=TARGET)
    with pytest.raises(ConflictError, match="taken"):
        kedge.admission.register(SYSTEM, [listed])
    kedge.admission.register(SYSTEM, [msgspec.structs.replace(listed, id="other")])
    approved = kedge.claims.create(SYSTEM, approval=True)[1].secret
    for asked in (
        enrol_request(key, secret, "cam"),
        enrol_request(key, claim(kedge), "new"),
        enrol_request(key, approved, "new"),
        enrol_request(key, "", "other"),
        EnrolRequest(claim=claim(kedge), csr_pem=csr(key), target=TARGET),
    ):
        with pytest.raises(ConflictError, match="this key is enrolled"):
            kedge.enrolment.enrol(asked)
    with pytest.raises(ForbiddenError):
        kedge.enrolment.renew(signed_request(key, "cam"))
    assert kedge.admission.waiting() == []


def test_a_connections_key_is_no_identity(kedge: Parts) -> None:
    """Somebody copies `tls.pem` from a device whose identity key is in a chip, and asks in its name."""
    identity, tls = fresh(), fresh()
    kedge.enrolment.enrol(enrol_request(identity, claim(kedge), "cam", tls))
    for attempt in (
        RenewRequest(device_id="cam", csr_pem=csr(tls)),
        signed_request(tls, "cam"),
    ):
        with pytest.raises(ForbiddenError, match="key of an enrolled device"):
            kedge.enrolment.renew(attempt)
    with pytest.raises(ConflictError, match="taken"):
        kedge.enrolment.enrol(enrol_request(tls, claim(kedge), "cam"))
    other = claim(kedge)
    with pytest.raises(ForbiddenError, match="not certified before"):
        kedge.enrolment.enrol(enrol_request(fresh(), other, "second", tls))
    assert "second" not in [x.id for x in kedge.devices.find(DeviceFilter())[0]]


def test_what_a_person_approves_is_the_key_and_nothing_that_is_said_later(kedge: Parts) -> None:
    """Approved, the device asks again with another target, another name, another claim: nothing changes."""
    key = fresh()
    secret = kedge.claims.create(SYSTEM, approval=True, labels={"site": "north"})[1].secret
    kedge.enrolment.enrol(enrol_request(key, secret, "cam"))
    kedge.admission.approve(SYSTEM, "cam", key_fingerprint(key.public_key()))
    wider = kedge.claims.create(SYSTEM, labels={"site": "vault"})[1].secret
    later = enrol_request(key, wider, "kedge-admin", target="jetson-orin")
    reply = kedge.enrolment.enrol(later)
    assert reply.device_id == "cam"
    made = kedge.devices.get("cam")
    assert (made.target, made.labels) == (TARGET, {"site": "north"})
