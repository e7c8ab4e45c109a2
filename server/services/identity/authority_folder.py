"""Where the fleet's certificate authorities lie, and how one follows another.

`ca` signs. While the fleet changes from one authority to the next there is a second one: `ca-next`, which
devices and broker learn to trust before it signs anything, and after the switch `ca-old`, which they go on
trusting until nobody has a certificate of it. `ca-links.pem` keeps, for each authority that followed another,
its key certified by the one before: a device that was away for all of it follows the links.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.durable import sync_folder, write_file
from server.errors import ConflictError, SettingsError
from server.ports.clock import Clock

CURRENT: Final = "ca"
NEXT: Final = "ca-next"
OLD: Final = "ca-old"
CA_LIFETIME: Final = timedelta(days=3650)
#: A device's clock may be behind ours.
BACKDATED: Final = timedelta(hours=1)


class Member(NamedTuple):
    """One of the authorities that are trusted now, without its key.

    Attributes:
        name: `ca` signs, `ca-next` will, `ca-old` did.
        key_id: what its certificates and revocation lists name it by, in hex.
        until: when it ends, seconds since the Unix epoch.
    """

    name: str
    key_id: str
    until: float

    @classmethod
    def of(cls, name: str, certificate: x509.Certificate) -> Member:
        """Return the authority of this certificate."""
        digest = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        return cls(name, digest.hex(), certificate.not_valid_after_utc.timestamp())


class Authority(NamedTuple):
    """One certificate authority."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def key_id(self) -> str:
        """The subject key id, in hex: what its certificates and revocation lists name it by."""
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()).digest.hex()


class AuthorityFolder:
    """The files of the authorities."""

    def __init__(self, folder: Path, clock: Clock, title: str = "Kedge fleet authority") -> None:
        """Use this folder; the first authority is made there if there is none.

        Args:
            folder: holds the files.
            clock: the time.
            title: what authorities that are made here are called.

        Raises:
            SettingsError: a file is damaged, or the key is missing.
        """
        self._folder: Final = folder
        self._clock: Final = clock
        self._title: Final = title
        key_file, certificate_file = self._files(CURRENT)
        if not key_file.exists() and not certificate_file.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(key_file, pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
        self._settle()

    def load(self, name: str) -> Authority | None:
        """Return an authority, None when there is none of that name.

        Raises:
            SettingsError: a file is damaged, or the key is missing.
        """
        key_file, certificate_file = self._files(name)
        if not key_file.exists() and not certificate_file.exists():
            return None
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            if not certificate_file.exists() and isinstance(key, ec.EllipticCurvePrivateKey):
                # Name and key make an authority: what it has issued verifies against a new certificate too.
                write_file(certificate_file, self._self_signed(key, self._name("")))
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(
                f"certificate authority in {self._folder}: {error}; restore it from a backup"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SettingsError(
                f"{key_file} is not the key of {certificate_file}; restore both from a backup"
            )
        return Authority(key, certificate)

    def members(self) -> tuple[Member, ...]:
        """Return every authority that is trusted now, the one that signs first.

        Raises:
            SettingsError: a file is damaged, or a key is missing.
        """
        found = ((name, self.load(name)) for name in (CURRENT, NEXT, OLD))
        return tuple(Member.of(name, one.certificate) for name, one in found if one is not None)

    def links(self) -> bytes:
        """Return the certificates by which each authority vouches for the one after it, the oldest first."""
        path = self._folder / "ca-links.pem"
        return path.read_bytes() if path.exists() else b""

    def add_next(self) -> None:
        """Make the authority that is to follow; it signs nothing yet.

        Raises:
            ConflictError: a change is under way already.
        """
        if self.load(NEXT) is not None or self.load(OLD) is not None:
            raise ConflictError("authority: a change is under way already; finish it first")
        current = self._needed(CURRENT)
        key = ec.generate_private_key(ec.SECP256R1())
        # Another name than the one before: brokers tell revocation lists apart by it.
        name = self._name(x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8])
        link = self._certificate(key, name, current.key, current.certificate.subject)
        key_file, certificate_file = self._files(NEXT)
        # The links first, the key last: until then the attempt has not been.
        write_file(self._folder / "ca-links.pem", self.links() + link)
        write_file(certificate_file, self._self_signed(key, name))
        write_file(key_file, pem(key), mode=0o600)

    def switch(self) -> None:
        """Let the next authority sign from now on; the present one becomes the old one.

        Raises:
            ConflictError: there is no next one.
        """
        if self.load(NEXT) is None:
            raise ConflictError("authority: there is no next one; make it first, and let devices learn of it")
        current = self._needed(CURRENT)
        key_file, certificate_file = self._files(OLD)
        write_file(certificate_file, current.certificate.public_bytes(serialization.Encoding.PEM))
        write_file(key_file, pem(current.key), mode=0o600)
        self._files(NEXT)[0].replace(self._files(CURRENT)[0])
        self._settle()

    def drop_old(self) -> None:
        """Trust the old authority no more: what it signed ends.

        Raises:
            ConflictError: there is no old one.
        """
        if self.load(OLD) is None:
            raise ConflictError("authority: there is no old one")
        for path in self._files(OLD):
            path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _needed(self, name: str) -> Authority:
        found = self.load(name)
        if found is None:
            raise SettingsError(f"certificate authority in {self._folder}: {name}.pem is missing")
        return found

    def _settle(self) -> None:
        """Finish, or forget, what a power cut has left of `add_next` and `switch`."""
        key_file, certificate_file = self._files(NEXT)
        if key_file.exists() or not certificate_file.exists():
            return
        current_key, current_certificate = self._files(CURRENT)
        try:
            key = serialization.load_pem_private_key(current_key.read_bytes(), None)
            switched = (
                key.public_key() == x509.load_pem_x509_certificate(certificate_file.read_bytes()).public_key()
            )
        except (OSError, ValueError, TypeError):
            return  # `load` says what is damaged
        if switched:
            certificate_file.replace(current_certificate)
        else:
            certificate_file.unlink()
        sync_folder(self._folder)

    def _files(self, name: str) -> tuple[Path, Path]:
        return self._folder / f"{name}.key.pem", self._folder / f"{name}.pem"

    def _name(self, mark: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self._title} {mark}".strip())])

    def _self_signed(self, key: ec.EllipticCurvePrivateKey, name: x509.Name) -> bytes:
        return self._certificate(key, name, key, name)

    def _certificate(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: x509.Name,
        by: ec.EllipticCurvePrivateKey,
        issuer: x509.Name,
    ) -> bytes:
        now = datetime.fromtimestamp(int(self._clock.now()), timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(by, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """Return what a key may be used for: an authority's to sign certificates and lists, others for TLS."""
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


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as it lies in a file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
