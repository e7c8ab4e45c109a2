"""Doormen: how a revoked device's connection ends, for each way in which a broker knows devices."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fleet.ids import DeviceId
from server.errors import BrokerError
from server.ports.broker import Credential

_PORT: Final = 8883
_PATIENCE: Final = 10.0
_CONNACK: Final = 0x20
_DISCONNECT: Final = b"\xe0\x00"


class PasswordDoorman:
    """For the embedded broker, which asks the database about every login."""

    def __init__(self, kick: Callable[[str], None]) -> None:
        """Keep what ends a connection by its user's name."""
        self._kick: Final = kick

    def refuses(self, probe: Credential) -> bool:
        """Return that it does: a revoked device has no password."""
        del probe
        return True

    def kick(self, device: DeviceId, visit: Callable[[], Credential]) -> None:
        """End a device's connection."""
        del visit
        self._kick(str(device))


class NoDoorman:
    """For a plain `mqtt://` broker on this machine, which knows nobody and so refuses nobody."""

    def refuses(self, probe: Credential) -> bool:
        """Return that there is nothing to wait for."""
        del probe
        return True

    def kick(self, device: DeviceId, visit: Callable[[], Credential]) -> None:
        """Do nothing: any client may have any name there."""


class CertificateDoorman:
    """For a broker with mutual TLS that takes user name and client id from the certificate.

    A client id is connected once: who connects with it ends the connection that had it (MQTT 3.1.1, 3.1.4).
    So the server ends a device's connection by connecting in its name, with a certificate that it makes for
    that and shows nobody else. It needs nothing of the broker but MQTT, wherever that runs.
    """

    def __init__(self, url: str, ca: Path) -> None:
        """Prepare it; `ca` is the file of the authorities that the broker's certificate is held against."""
        parts = urlsplit(url)
        self._address: Final = (parts.hostname or "", parts.port or _PORT)
        self._ca: Final = ca

    def refuses(self, probe: Credential) -> bool:
        """Return whether the broker refuses the certificate as revoked.

        Raises:
            BrokerError: it cannot be reached.
        """
        try:
            self._connects(probe, "kedge-probe")
        except ssl.SSLError as error:
            if "REVOKED" in (error.reason or ""):
                return True
            raise self._trouble(error) from error
        return False

    def kick(self, device: DeviceId, visit: Callable[[], Credential]) -> None:
        """Take the device's place, and leave.

        Raises:
            BrokerError: the broker cannot be reached, or does not let the server in as the device.
        """
        try:
            admitted = self._connects(visit(), str(device))
        except ssl.SSLError as error:
            raise self._trouble(error) from error
        if not admitted:
            raise self._trouble(f"does not let the server take the place of {device}")

    def _connects(self, credential: Credential, name: str) -> bool:
        with _files(credential) as (certificate, key):
            context = ssl.create_default_context(cafile=str(self._ca))
            context.load_cert_chain(certificate, key)
        # In TLS 1.3 a client has finished before it is told that it is refused, and may miss why.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        host = self._address[0]
        try:
            with (
                socket.create_connection(self._address, _PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname=host) as tls,
            ):
                tls.sendall(_connect_packet(name))
                answer = tls.recv(4)
                if answer[:1] != bytes([_CONNACK]) or answer[3:4] != b"\x00":
                    return False
                tls.sendall(_DISCONNECT)
                return True
        except ssl.SSLError:
            raise
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, why: object) -> BrokerError:
        return BrokerError(f"broker {self._address[0]}:{self._address[1]}: {why}")


def _connect_packet(name: str) -> bytes:
    """Return a CONNECT (MQTT 3.1.1, 3.1): clean session, keep-alive 10 s; a client id of up to 63 bytes."""
    body = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(name).to_bytes(2, "big") + name.encode()
    return bytes([0x10, len(body)]) + body


@contextlib.contextmanager
def _files(credential: Credential) -> Iterator[tuple[Path, Path]]:
    """Give files for as long as it takes to read them: Python's TLS takes nothing else."""
    with tempfile.TemporaryDirectory(prefix="kedge-") as folder:
        certificate, key = Path(folder) / "certificate.pem", Path(folder) / "key.pem"
        certificate.write_bytes(credential.certificate)
        key.write_bytes(credential.key)
        yield certificate, key
