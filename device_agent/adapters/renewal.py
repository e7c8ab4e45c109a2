"""Renews the device's certificate over HTTP, for a new key.

In the second half of its life, and when the fleet goes from one certificate authority to the next.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent.adapters import answers, credentials, device_key, files
from device_agent.adapters.state import StateFolder
from device_agent.errors import StateError, StorageError, UnreachableError
from fleet.wire import vouching
from fleet.wire.enrolment import RenewReply, RenewRequest, TrustedAuthorities

_LOG: Final = logging.getLogger(__name__)
_PATH: Final = "/api/v1/renew"
_AUTHORITIES: Final = "/api/v1/authorities"
#: Seconds between two looks at the certificate, at most; a short-lived one is looked at more often.
_EVERY: Final = 6 * 3600.0
_SOONEST: Final = 5.0
#: The part of that time over which a fleet's renewals are spread when its authority changes.
_SPREAD: Final = 1 / 6
#: So far a server's clock may be ahead.
_AHEAD: Final = timedelta(days=1)


class Renewal:
    """Looks after the certificate, on a thread of its own."""

    def __init__(
        self,
        state: StateFolder,
        now: Callable[[], float],
        renewed: Callable[[], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Look after the certificate in this folder.

        Args:
            state: holds keys, certificate and the fleet's authorities.
            now: the time, seconds since the Unix epoch.
            renewed: told when a new certificate is in place.
            chance: a number from 0 up to 1, another each time: keeps a fleet from renewing in one second.
        """
        self._state: Final = state
        self._now: Final = now
        self._renewed: Final = renewed
        self._chance: Final = chance
        self._followed: TrustedAuthorities | None = None
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
        begin, end = self._life()
        return self._now() > (begin + end) / 2

    def behind(self) -> TrustedAuthorities | None:
        """Return what the server says of the fleet's authorities, where it is not what this device has.

        An answer is followed once: whoever sends another may get a renewal for it, and no more.

        Raises:
            StateError: certificate or authorities are unreadable.
            UnreachableError: the server does not answer, or with something else.
        """
        said = _authorities(self._state.identity().server)
        present = credentials.present(self._state)
        same = said.signs == credentials.issuer(present)
        if said == self._followed or (same and set(said.trusted) == credentials.key_ids(self._state)):
            return None
        return said

    def renew(self) -> None:
        """Ask the server for a new certificate, check it, and put it in the old one's place.

        Raises:
            StateError: key or certificate is unusable.
            UnreachableError: the server refuses, does not answer, or with something else.
            StorageError: the disk does not take it.
        """
        identity, key = self._state.identity(), device_key.open_key(self._state.key)
        tls, now = credentials.next_key(self._state), int(self._now())
        csr = device_key.certificate_request(tls)
        signature = key.sign(vouching.to_sign(vouching.RENEW, identity.device_id, now, csr))
        vouched = vouching.vouched(key.public_pem(), identity.device_id, now, signature)
        request = RenewRequest(device_id=identity.device_id, csr_pem=csr, vouched=vouched)
        self._take(_asked(identity.server, request), tls)
        self._renewed()

    def _run(self) -> None:
        while True:
            pause = _EVERY
            try:
                begin, end = self._life()
                pause = min(_EVERY, max(_SOONEST, (end - begin) / 20))
                if self.due():
                    self.renew()
                    _LOG.info("the certificate is renewed")
                else:
                    self._follow(pause)
            except (StateError, StorageError, UnreachableError) as error:
                _LOG.warning("the certificate is not renewed, will try again: %s", error)
            except Exception:  # noqa: BLE001 - who finds a fault in here must not end the renewals with it
                _LOG.exception("the certificate is not renewed, will try again")
            if self._stopped.wait(pause):
                return

    def _follow(self, pause: float) -> None:
        """Renew where the fleet changes its authority: within an hour, at once if the broker refuses us."""
        try:
            said = self.behind()
        except UnreachableError as error:
            _LOG.info("the fleet's authorities are not known, will ask again: %s", error)
            return
        if said is None:
            return
        believed = credentials.issuer(credentials.present(self._state)) in said.trusted
        if believed and self._stopped.wait(pause * _SPREAD * self._chance()):
            return
        self.renew()
        self._followed = said
        _LOG.info("the certificate is renewed: the fleet's authorities have changed")

    def _life(self) -> tuple[float, float]:
        found = credentials.present(self._state)
        return found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()

    def _take(self, reply: RenewReply, tls: ec.EllipticCurvePrivateKey) -> None:
        """Keep only what the fleet's own authority has signed for this key: plain HTTP proves nothing."""
        try:
            known = self._state.ca.read_bytes()
        except OSError as error:
            raise UnreachableError(f"renewal: {self._state.ca}: {error.strerror}") from error
        made = credentials.read(reply.certificate_pem)
        trusted = credentials.authorities(known, reply.ca_pem, reply.links_pem)
        if not credentials.issued_by(made, trusted):
            raise UnreachableError(
                "renewal: expected a certificate of the fleet: another authority signed it"
            )
        if made.public_key() != tls.public_key():
            raise UnreachableError("renewal: expected a certificate for this device's key, got another's")
        self._check_times(made)
        # The authorities first: between the two, the old certificate is good with both.
        files.write(self._state.ca, credentials.pem(trusted))
        credentials.keep(self._state, tls, reply.certificate_pem)

    def _check_times(self, made: x509.Certificate) -> None:
        """Keep the present certificate where the server's clock is wrong: it might be the better one.

        A clock of the device's that stands before its present certificate began is the wrong one itself, and
        judges nothing.
        """
        present = credentials.present(self._state)
        if made.not_valid_after_utc <= present.not_valid_after_utc:
            raise UnreachableError(
                f"renewal: expected a certificate that ends after {present.not_valid_after_utc:%Y-%m-%d}, "
                f"got one until {made.not_valid_after_utc:%Y-%m-%d}; is the server's clock right?"
            )
        now = datetime.fromtimestamp(self._now(), timezone.utc)
        if present.not_valid_before_utc <= now < made.not_valid_before_utc - _AHEAD:
            raise UnreachableError(
                f"renewal: expected a certificate that holds now, got one from "
                f"{made.not_valid_before_utc:%Y-%m-%d} on; is the server's clock right?"
            )


def _authorities(server: str) -> TrustedAuthorities:
    url = server.rstrip("/") + _AUTHORITIES
    answer = answers.get(url)
    if not answer.good:
        raise UnreachableError(f"{url}: the server refuses ({answer.status})")
    try:
        return msgspec.json.decode(answer.content, type=TrustedAuthorities)
    except ValueError as error:
        raise UnreachableError(f"{url}: {error}") from error


def _asked(server: str, request: RenewRequest) -> RenewReply:
    url = server.rstrip("/") + _PATH
    answer = answers.post(url, msgspec.json.encode(request))
    if not answer.good:
        raise UnreachableError(f"{url}: the server refuses ({answer.status})")
    try:
        return msgspec.json.decode(answer.content, type=RenewReply)
    except ValueError as error:
        raise UnreachableError(f"{url}: {error}") from error
