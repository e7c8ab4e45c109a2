"""Renews the device's certificate over HTTP: in the second half of its life, for the same key."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import httpx
import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent.adapters import device_key, files
from device_agent.adapters.state import StateFolder
from device_agent.errors import StateError, StorageError, UnreachableError
from fleet.wire.enrolment import RenewReply, RenewRequest

_LOG: Final = logging.getLogger(__name__)
_PATH: Final = "/api/v1/renew"
_TIMEOUT: Final = 30.0
#: Seconds between two looks at the certificate.
_EVERY: Final = 6 * 3600.0


class Renewal:
    """Looks after the certificate, on a thread of its own."""

    def __init__(self, state: StateFolder, now: Callable[[], float], renewed: Callable[[], None]) -> None:
        """Look after the certificate in this folder.

        Args:
            state: holds key, certificate and the fleet's authority.
            now: the time, seconds since the Unix epoch.
            renewed: told when a new certificate is in place.
        """
        self._state: Final = state
        self._now: Final = now
        self._renewed: Final = renewed
        self._stopped: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="certificate", daemon=True)

    def start(self) -> None:
        """Look at once, and from time to time."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a request under way is left to its own end."""
        self._stopped.set()

    def due(self) -> bool:
        """Return whether more than half of the certificate's life has passed.

        Raises:
            StateError: the certificate is unreadable.
        """
        certificate = self._certificate()
        begin, end = (
            x.timestamp() for x in (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        )
        return self._now() > (begin + end) / 2

    def renew(self) -> None:
        """Ask the server for a new certificate, check it, and put it in the old one's place.

        Raises:
            StateError: key or certificate is unusable, or the server refuses.
            UnreachableError: the server does not answer, or with something else.
            StorageError: the disk does not take it.
        """
        identity = self._state.identity()
        key = device_key.load(self._state.key)
        pem = _asked(
            identity.server,
            RenewRequest(device_id=identity.device_id, csr_pem=device_key.certificate_request(key)),
        )
        self._check(pem, key)
        files.write(self._state.certificate, pem.encode())
        self._renewed()

    def _run(self) -> None:
        while True:
            try:
                if self.due():
                    self.renew()
                    _LOG.info("the certificate is renewed")
            except (StateError, StorageError, UnreachableError) as error:
                _LOG.warning("the certificate is not renewed, will try again: %s", error)
            if self._stopped.wait(_EVERY):
                return

    def _certificate(self) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self._state.certificate.read_bytes())
        except (OSError, ValueError) as error:
            raise StateError(f"{self._state.certificate}: {error}") from error

    def _check(self, pem: str, key: ec.EllipticCurvePrivateKey) -> None:
        """Take only what the fleet's own authority has signed for this key: plain HTTP proves nothing."""
        try:
            made = x509.load_pem_x509_certificate(pem.encode())
            made.verify_directly_issued_by(x509.load_pem_x509_certificate(self._state.ca.read_bytes()))
        except (OSError, ValueError, TypeError, InvalidSignature) as error:
            reason = str(error) or "another authority signed it"
            raise UnreachableError(f"renewal: expected a certificate of the fleet: {reason}") from error
        if made.public_key() != key.public_key():
            raise UnreachableError("renewal: expected a certificate for this device's key, got another's")


def _asked(server: str, request: RenewRequest) -> str:
    url = server.rstrip("/") + _PATH
    headers = {"content-type": "application/json"}
    try:
        response = httpx.post(url, content=msgspec.json.encode(request), headers=headers, timeout=_TIMEOUT)
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=RenewReply).certificate_pem
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UnreachableError(f"{url}: {error}") from error
