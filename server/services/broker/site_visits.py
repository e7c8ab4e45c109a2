"""Ends the connections of revoked devices at a site's broker, which the server cannot reach.

The site's broker has an authority of its own, the *visitor*, which nobody else believes. With it the watch
beside the broker connects in the name of whoever the fleet's revocation lists name, which ends the device's
connection. Who has the visitor's key has the broker's too, and so what it may do there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fleet.ids import DeviceId
from server.durable import write_file
from server.errors import BrokerError, ClientError, SettingsError
from server.ports.broker import Doorman
from server.ports.clock import Clock
from server.services.identity import revocation_lists
from server.services.identity.authority import PROBE_NAME, Issued, visit_by
from server.services.identity.authority_folder import CURRENT, Authority, AuthorityFolder

FOLDER: Final = "visitor"
#: Dated back, as the fleet's are: a broker whose clock is behind would refuse everybody.
_BACKDATED: Final = 86400
#: After so long, mosquitto has ended every connection on which nobody has said who they are.
LATE_CONNECT: Final = 120.0
#: How often, and after how many seconds each, to see whether the broker has read its files.
_LOOKS: Final = 100
_BETWEEN: Final = 0.1


def visitor(out: Path, clock: Clock) -> Authority:
    """Return the visitor of a site's broker, made now if there is none.

    Raises:
        SettingsError: its files are damaged.
    """
    found = AuthorityFolder(out / FOLDER, clock, "Kedge site visitor").load(CURRENT)
    if found is None:
        raise SettingsError(f"{out / FOLDER}: expected the site's visitor; write the set-up again")
    return found


def visitor_files(out: Path) -> tuple[Path, ...]:
    """Return where the visitor lies."""
    return out / FOLDER / f"{CURRENT}.pem", out / FOLDER / f"{CURRENT}.key.pem"


def certificate_pem(by: Authority) -> bytes:
    """Return the visitor's certificate."""
    return by.certificate.public_bytes(serialization.Encoding.PEM)


class Visits:
    """Visits a site's broker; one who looks now and then keeps it."""

    def __init__(
        self,
        out: Path,
        clock: Clock,
        doorman: Doorman,
        sleep: Callable[[float], None],
        told: Callable[[DeviceId], None],
    ) -> None:
        """Prepare it.

        Args:
            out: the folder of the broker's set-up.
            clock: the time.
            doorman: shows certificates to the broker.
            sleep: waits so many seconds.
            told: of each device whose connection was ended, if it had one.
        """
        self._path: Final = out / "crl.pem"
        self._clock: Final = clock
        self._doorman: Final = doorman
        self._sleep: Final = sleep
        self._told: Final = told
        self._by: Final = visitor(out, clock)
        self._visited: Final[dict[DeviceId, float]] = {}
        self._settled: Final[set[DeviceId]] = set()
        self._probe: Issued | None = None

    def due(self, names: Iterable[DeviceId]) -> list[DeviceId]:
        """Return whom of the revoked to visit now: each once, and once more two minutes later."""
        late = self._clock.now() - LATE_CONNECT
        return sorted(x for x in names if x not in self._settled and self._visited.get(x, late) <= late)

    def mark(self) -> None:
        """Put a list of the visitor's beside the fleet's, by which to see that the broker has read them."""
        self._probe = visit_by(self._by, self._now(), PROBE_NAME)
        shown = x509.load_pem_x509_certificate(self._probe.certificate).serial_number
        there, mine = self._path.read_bytes(), certificate_pem(self._by)
        before = [int(x.last_update_utc.timestamp()) for x in revocation_lists.read(there, mine)]
        issued_at = max([int(self._clock.now()) - _BACKDATED, *(x + 1 for x in before)])
        ours = revocation_lists.make(self._by, issued_at, issued_at, {shown: ""})
        fleets = revocation_lists.read(there, self._path.with_name("ca.pem").read_bytes())
        write_file(self._path, revocation_lists.pem(fleets) + ours)

    def throw_out(self, names: Iterable[DeviceId]) -> None:
        """End the connections of these devices, once the broker refuses them.

        Raises:
            ClientError: it does not refuse them yet, or cannot be reached; to be tried again.
        """
        try:
            self._wait_until_read()
            for name in names:
                self._doorman.kick(name, partial(visit_by, self._by, self._now(), name))
                if name in self._visited:
                    self._settled.add(name)
                else:
                    self._told(name)
                self._visited[name] = self._clock.now()
        except BrokerError as error:
            raise ClientError(str(error)) from error

    def _wait_until_read(self) -> None:
        for _ in range(_LOOKS):
            if self._probe is not None and self._doorman.refuses(self._probe):
                return
            self._sleep(_BETWEEN)
        raise ClientError("the broker has not read its revocation lists, though it was told to")

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now()), timezone.utc)
