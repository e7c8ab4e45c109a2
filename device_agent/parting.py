"""The device's last step: it was truly told to wipe itself, says so, and is then wiped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from device_agent.ports import Clock, Link
from fleet.ids import DeviceId
from fleet.trust.assignment import Assignment
from fleet.wire import codec, topics
from fleet.wire.messages import Decommissioned

_LOG: Final = logging.getLogger(__name__)
#: Seconds for the server to hear of it; an order to wipe does not depend on the server being there.
PATIENCE: Final = 20.0
_AGAIN: Final = 3.0


class Parting:
    """Says goodbye. Not for two threads at a time, but for `begun`."""

    def __init__(
        self, device: DeviceId, link: Link, clock: Clock, boot_id: str, patience: float = PATIENCE
    ) -> None:
        """Keep what is needed."""
        self._device: Final = device
        self._link: Final = link
        self._clock: Final = clock
        self._boot_id: Final = boot_id
        self._patience: Final = patience
        self._goodbye: Decommissioned | None = None
        self._began = self._sent = 0.0
        self._ended = False
        #: Called once, when everything is to be stopped and wiped.
        self.at_end: Callable[[], None] = lambda: None

    @property
    def begun(self) -> bool:
        """Whether the device was told to wipe itself: it takes no other order any more."""
        return self._goodbye is not None

    @property
    def ended(self) -> bool:
        """Whether everything is to be stopped and wiped now."""
        return self._ended

    def begin(self, assignment: Assignment) -> None:
        """Follow a verified order to wipe."""
        if self._goodbye is not None:
            return
        _LOG.warning("this device is decommissioned: it says so, wipes itself and stops")
        self._goodbye = Decommissioned(
            id=self._clock.unique(),
            assignment_version=assignment.version,
            time=self._clock.time(),
            boot_id=self._boot_id,
        )
        self._began = self._clock.monotonic()
        self._say()

    def acknowledged(self, ids: Sequence[str]) -> None:
        """The server has heard of these."""
        if self._goodbye is not None and self._goodbye.id in ids:
            self._end()

    def look(self) -> None:
        """Say it again where no answer came, and end when there was time enough."""
        if self._goodbye is None:
            return
        now = self._clock.monotonic()
        if now - self._began >= self._patience:
            self._end()
        elif now - self._sent >= _AGAIN:
            self._say()

    def _say(self) -> None:
        if self._goodbye is not None:
            self._sent = self._clock.monotonic()
            self._link.publish(topics.event(self._device), codec.encode(self._goodbye))

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.at_end()
