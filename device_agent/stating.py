"""What the device says of itself with its own signature: when, and what of it outlives a restart."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from device_agent.errors import StorageError
from device_agent.ports import Clock, Link
from fleet.errors import KedgeError
from fleet.ids import DeviceId
from fleet.text import printable
from fleet.trust import policy
from fleet.wire import codec, statement, topics
from fleet.wire.messages import AttackIndicator, Hello, RunningModel, Statement

_LOG: Final = logging.getLogger(__name__)
#: Seconds between two statements: who floods a device with forgeries makes it sign no more often.
PAUSE: Final = 10.0
#: A detail may quote what an attacker has written.
_DETAIL_LENGTH: Final = 500


class _Kept(msgspec.Struct, kw_only=True):
    """What the file holds."""

    sequence: int = 0
    refused: int = 0
    attack: AttackIndicator | None = None
    held_timestamp: bytes = b""


class Statements:
    """Signs and sends statements: on connect, when what runs has changed, and after each refusal."""

    def __init__(
        self,
        device: DeviceId,
        path: Path,
        key: Callable[[bytes], bytes],
        link: Link,
        clock: Clock,
        believed: Callable[[], policy.Clock],
        pause: float = PAUSE,
    ) -> None:
        """Read what was kept.

        Args:
            device: this device's id.
            path: the file that outlives a restart; a damaged one only costs the memory of refusals.
            key: signs bytes with the device's identity key.
            link: the connection to the broker.
            clock: monotonic seconds.
            believed: the time that the device may believe.
            pause: seconds between two statements.
        """
        self._device: Final = device
        self._path: Final = path
        self._key: Final = key
        self._link: Final = link
        self._clock: Final = clock
        self._believed: Final = believed
        self._pause: Final = pause
        self._kept: Final = _read(path)
        self._due = False
        self._last: float | None = None
        self._left: Statement | None = None
        self._trouble = ""

    def changed(self) -> None:
        """Have a statement sent, soon."""
        self._due = True

    def refused(self, what: str, reason: str, detail: str, held_timestamp: bytes = b"") -> None:
        """Remember what was refused, and have it told.

        Args:
            what: what did not verify.
            reason: a short code.
            detail: one line for a person.
            held_timestamp: the device's own timestamp, where something older than it came.
        """
        kept = self._kept
        kept.refused += 1
        kept.attack = AttackIndicator(
            what=what, reason=reason, detail=printable(detail[:_DETAIL_LENGTH]), time=self._clock.time()
        )
        kept.held_timestamp = held_timestamp
        self._due = True

    def send_due(self, hello: Callable[[], Hello]) -> None:
        """Send a statement if one is due and the pause is over; `hello` says how the device is."""
        now = self._clock.monotonic()
        if not self._due or (self._last is not None and now - self._last < self._pause):
            return
        self._last = now
        signed = self._signed(self._statement(hello()))
        self._due = signed is None
        if signed is not None:
            self._link.publish(topics.manifest(self._device), signed)

    def leave_due(self, hello: Callable[[], Hello]) -> None:
        """Without a network: leave a signed statement for whoever carries reports by hand."""
        now = self._clock.monotonic()
        if self._last is not None and now - self._last < self._pause:
            return
        self._last, current = now, self._statement(hello())
        if self._left is not None and current == msgspec.structs.replace(
            self._left, sequence=current.sequence
        ):
            return
        signed = self._signed(current)
        if signed is not None:
            self._left = current
            with self._survived():
                files.write(left_by(self._path), signed)

    def _signed(self, current: Statement) -> bytes | None:
        """Return a statement with the next number, signed; None where the key cannot be used."""
        believed = self._believed().now
        self._kept.sequence = statement.next_sequence(self._kept.sequence, believed)
        with self._survived():
            files.write(self._path, msgspec.json.encode(self._kept))
        numbered = msgspec.structs.replace(current, sequence=self._kept.sequence)
        try:
            signed = codec.encode(statement.sign(numbered, self._device, believed, self._key))
        except KedgeError as error:  # a key in hardware comes back: it is tried again after each pause
            if str(error) != self._trouble:
                _LOG.warning("no statement is made: %s", error)
            self._trouble = str(error)
            return None
        self._trouble = ""
        return signed

    def _statement(self, hello: Hello) -> Statement:
        kept = self._kept
        return Statement(
            sequence=kept.sequence,
            boot_id=hello.boot_id,
            agent_version=hello.agent_version,
            target=hello.target,
            models=tuple(
                RunningModel(
                    model=slot.model,
                    bundle=slot.active,
                    version=slot.active_version,
                    release_counter=slot.release_counter,
                )
                for slot in hello.slots
                if slot.active
            ),
            assignment_version=hello.assignment_version,
            clock_untrusted=hello.clock_untrusted,
            refused=kept.refused,
            attack=kept.attack,
            held_timestamp=kept.held_timestamp,
        )

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            # The next number is the time anyway: a full disk keeps no device from saying how it is.
            _LOG.warning("statements: %s", error)


def left_by(path: Path) -> Path:
    """Return where a signed statement is left, for a file of `Statements`."""
    return path.with_suffix(".signed")


def _read(path: Path) -> _Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return _Kept()
    except (OSError, ValueError) as error:
        _LOG.warning("statements: %s: %s; beginning anew", path, error)
        return _Kept()
