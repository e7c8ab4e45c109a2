"""The fleet's certificate authority: certificates for devices, for the broker, and for the server itself.

Devices make their own keys (EC P-256) and send a request; what the request says of itself is ignored but for
its public key. The broker takes a device's id from the certificate's common name, so only checked ids get in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ids import DeviceId
from server.errors import InvalidError, SettingsError
from server.ports.clock import Clock
from server.services.durable import write_file

#: The common name, and so the MQTT user, of the server. No device may have it.
SERVER_NAME: Final = "kedge-server"
#: A request for a certificate is about 500 bytes.
CSR_LIMIT: Final = 8 * 1024

CA_LIFETIME: Final = timedelta(days=3650)
DEVICE_LIFETIME: Final = timedelta(days=90)
BROKER_LIFETIME: Final = timedelta(days=365)
SERVER_LIFETIME: Final = timedelta(days=365)
#: A device's clock may be behind ours.
_BACKDATED: Final = timedelta(hours=1)


class Issued(NamedTuple):
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


class FleetAuthority:
    """Issues the fleet's certificates."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Load the authority from its folder, or make it there.

        Raises:
            SettingsError: a file is damaged, or the key is missing.
        """
        self._clock: Final = clock
        key_file, certificate_file = folder / "ca.key.pem", folder / "ca.pem"
        if not key_file.exists() and not certificate_file.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(key_file, _pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            if not certificate_file.exists() and isinstance(key, ec.EllipticCurvePrivateKey):
                # Name and key make an authority: what it has issued verifies against a new certificate too.
                write_file(certificate_file, self._certificate_of(key))
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(
                f"certificate authority in {folder}: {error}; restore it from a backup"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SettingsError(
                f"{key_file} is not the key of {certificate_file}; restore both from a backup"
            )
        self._key: Final = key
        self._certificate: Final = certificate

    @property
    def ca_pem(self) -> bytes:
        """The authority's own certificate, for devices, broker and server to check one another with."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign_device(self, csr_pem: str, device: DeviceId) -> str:
        """Return a device's certificate (PEM): common name the device's id, for TLS clients, 90 days.

        Raises:
            InvalidError: no request for a P-256 key that proves to have the key, or a reserved id.
        """
        if device == SERVER_NAME:
            raise InvalidError(f"device id: {SERVER_NAME} is the server's own")
        public = _checked_request(csr_pem)
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(device, public, DEVICE_LIFETIME, usage, ()).decode()

    def issue_broker(self, hosts: Sequence[str] = ()) -> Issued:
        """Return key and certificate for a broker that is reached as these hosts, and on loopback.

        Raises:
            InvalidError: a host is neither a name nor an address.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_host(host) for host in dict.fromkeys(("localhost", "127.0.0.1", *hosts))]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = self._issue("kedge-broker", key.public_key(), BROKER_LIFETIME, usage, names)
        return Issued(_pem(key), certificate)

    def issue_server(self) -> Issued:
        """Return key and certificate with which the server connects to the broker as `kedge-server`."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return Issued(_pem(key), self._issue(SERVER_NAME, key.public_key(), SERVER_LIFETIME, usage, ()))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now()), timezone.utc)

    def _certificate_of(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kedge fleet authority")])
        now = self._now()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        common_name: str,
        public: ec.EllipticCurvePublicKey,
        lifetime: timedelta,
        usage: Iterable[x509.ObjectIdentifier],
        names: Sequence[x509.GeneralName],
    ) -> bytes:
        now = self._now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _checked_request(csr_pem: str) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > CSR_LIMIT:
        raise InvalidError(f"certificate request: expected at most {CSR_LIMIT} bytes, got {len(csr_pem)}")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InvalidError(f"certificate request: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidError("certificate request: expected an EC P-256 key")
    if not valid:
        raise InvalidError("certificate request: not signed by its own key")
    return public


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


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


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
