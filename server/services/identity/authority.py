"""The fleet's certificate authority: certificates for devices, for the broker, and for the server itself.

Devices make their own keys (EC P-256) and send a request; what the request says of itself is ignored but for
its public key. The broker takes a device's id from the certificate's common name, so only checked ids get in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ids import DeviceId
from server.errors import InvalidError, SettingsError
from server.ports.clock import Clock
from server.services.identity import revocation_lists
from server.services.identity.authority_folder import (
    BACKDATED,
    CURRENT,
    NEXT,
    OLD,
    Authority,
    AuthorityFolder,
    key_usage,
    pem,
)

#: The common name, and so the MQTT user, of the server. No device may have it.
SERVER_NAME: Final = "kedge-server"
#: The common name of the certificate by which the server sees whether the broker refuses what is revoked.
PROBE_NAME: Final = "kedge-probe"
#: A request for a certificate is about 500 bytes.
CSR_LIMIT: Final = 8 * 1024
#: How long the server's own certificates for looking after the broker hold.
_VISIT: Final = timedelta(hours=1)


class CertificateLifetimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long certificates hold; a device asks for the next one when half of it has passed."""

    device: timedelta = timedelta(days=30)
    broker: timedelta = timedelta(days=365)
    server: timedelta = timedelta(days=365)


class Issued(NamedTuple):
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


class FleetAuthority:
    """Issues the fleet's certificates and revocation lists.

    Attributes:
        members: every authority that is trusted now, the one that signs first.
        links_pem: for each authority that followed another, its key certified by the one before.
    """

    def __init__(self, folder: Path, clock: Clock, lifetimes: CertificateLifetimes | None = None) -> None:
        """Load the authority from its folder, or make it there.

        Raises:
            SettingsError: a file is damaged, or the key is missing.
        """
        self._clock: Final = clock
        self._lifetimes: Final = lifetimes or CertificateLifetimes()
        files = AuthorityFolder(folder, clock)
        current = files.load(CURRENT)
        if current is None:
            raise SettingsError(f"certificate authority in {folder}: ca.pem is missing")
        self._current: Final = current
        others = (files.load(name) for name in (NEXT, OLD))
        self._all: Final = (current, *(other for other in others if other is not None))
        self.members: Final = files.members()
        self.links_pem: Final = files.links()

    @property
    def ca_pem(self) -> bytes:
        """Every authority that is trusted now, for devices, broker and server; the one that signs first."""
        return b"".join(x.certificate.public_bytes(serialization.Encoding.PEM) for x in self._all)

    def revocation_list(self, number: int, issued_at: int, revoked: Mapping[str, Mapping[int, str]]) -> bytes:
        """Return one list (PEM) for each authority, all with the same number.

        They hold as long as an authority does: a broker refuses everybody once a list has run out, and a
        server that is away must not end a fleet.

        Args:
            number: higher than that of any list before.
            issued_at: later than that of any list before, for OpenSSL takes the latest it was given.
            revoked: serial numbers and whose they are, by the key id of the authority that issued them.
        """
        lists = (revocation_lists.make(x, number, issued_at, revoked.get(x.key_id, {})) for x in self._all)
        return b"".join(lists)

    def sign_device(self, csr_pem: str, device: DeviceId) -> str:
        """Return a device's certificate (PEM): common name the device's id, for TLS clients.

        Raises:
            InvalidError: no request for a P-256 key that proves to have the key, or a reserved id.
        """
        if device in (SERVER_NAME, PROBE_NAME):
            raise InvalidError(f"device id: {device} is the server's own")
        public = requested_key(csr_pem)
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(device, public, self._lifetimes.device, usage, ()).decode()

    def issue_broker(self, hosts: Sequence[str] = ()) -> Issued:
        """Return key and certificate for a broker that is reached as these hosts, and on loopback.

        Raises:
            InvalidError: a host is neither a name nor an address.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_host(host) for host in dict.fromkeys(("localhost", "127.0.0.1", *hosts))]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = self._issue("kedge-broker", key.public_key(), self._lifetimes.broker, usage, names)
        return Issued(pem(key), certificate)

    def issue_server(self) -> Issued:
        """Return key and certificate with which the server connects to the broker as `kedge-server`."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return Issued(pem(key), self._issue(SERVER_NAME, key.public_key(), self._lifetimes.server, usage, ()))

    def issue_bridge(self, name: str) -> Issued:
        """Return key and certificate with which a site's broker connects to the fleet's.

        Args:
            name: no device's: it has a dot in it.

        Raises:
            InvalidError: a device may have that name.
        """
        if "." not in name:
            raise InvalidError(f"bridge: expected a name with a dot, got {name!r}")
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return Issued(pem(key), self._issue(name, key.public_key(), self._lifetimes.broker, usage, ()))

    def issue_visit(self, name: str) -> Issued:
        """Return key and certificate, for an hour, with which the server shows itself as somebody else.

        As a device it takes that device's place on the broker, which ends the device's connection.
        """
        return visit_by(self._current, self._now(), name)

    def signed(self, certificate: x509.Certificate) -> bool:
        """Return whether the authority that signs now has signed a certificate, not the one before."""
        try:
            certificate.verify_directly_issued_by(self._current.certificate)
        except (ValueError, InvalidSignature):
            return False
        return True

    @property
    def key_id(self) -> str:
        """The key id of the authority that signs now."""
        return self._current.key_id

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now()), timezone.utc)

    def _issue(
        self,
        common_name: str,
        public: ec.EllipticCurvePublicKey,
        lifetime: timedelta,
        usage: Iterable[x509.ObjectIdentifier],
        names: Sequence[x509.GeneralName],
    ) -> bytes:
        return _certify(self._current, self._now(), common_name, public, lifetime, usage, names)


def visit_by(authority: Authority, now: datetime, name: str) -> Issued:
    """Return key and certificate, for an hour, with which somebody shows themselves as somebody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return Issued(pem(key), _certify(authority, now, name, key.public_key(), _VISIT, usage, ()))


def _certify(
    by: Authority,
    now: datetime,
    common_name: str,
    public: ec.EllipticCurvePublicKey,
    lifetime: timedelta,
    usage: Iterable[x509.ObjectIdentifier],
    names: Sequence[x509.GeneralName],
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(by.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(by.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the key that a certificate request asks for, and proves to have.

    Raises:
        InvalidError: no request for a P-256 key that proves to have the key.
    """
    if len(csr_pem) > CSR_LIMIT:
        raise InvalidError(f"certificate request: expected at most {CSR_LIMIT} bytes, got {len(csr_pem)}")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidError(f"certificate request: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidError("certificate request: expected an EC P-256 key")
    if not valid:
        raise InvalidError("certificate request: not signed by its own key")
    return public


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if (
        not host.isascii()
        or not host
        or not set(host.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    ):
        raise InvalidError(f"host: expected a name or an address, got {host!r}")
    return x509.DNSName(host)
