"""What happens to an agent; its own thread takes one thing at a time."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from device_agent.carrying import Carried
from device_agent.driver import Outcome
from fleet.errors import KedgeError
from fleet.trust.assignment import Assignment

_LOG: Final = logging.getLogger(__name__)
#: Bytes of messages that came and that nobody has looked at yet: four of the largest.
MOST_WAITING: Final = 16 * 1024 * 1024


class Connected(NamedTuple):
    """The broker's connection came, or went."""

    up: bool


class Arrived(NamedTuple):
    """A reply or a command came on one of the device's own topics."""

    kind: str
    payload: bytes


class Refused(NamedTuple):
    """Something that came does not verify."""

    what: str
    reason: str
    detail: str


class Kit(NamedTuple):
    """The kit in the inbox was verified, or refused."""

    result: Carried | KedgeError


class Stop(NamedTuple):
    """The agent is asked to stop."""


Happening: TypeAlias = Connected | Arrived | Refused | Outcome | Assignment | Kit | Stop


def poster(happenings: queue.SimpleQueue[Happening], what: str = "chunk") -> Callable[[str, str], None]:
    """Return what is told of refused chunks, or of whatever else comes with a download."""
    return lambda reason, detail: happenings.put(Refused(what, reason, detail))


class Arrivals:
    """Lets messages wait for the agent's thread, up to so many bytes: a broker that floods fills no memory.

    What finds no room comes again: a reply when the device asks again, a command when a person does.
    """

    def __init__(self, post: Callable[[Happening], None], most: int = MOST_WAITING) -> None:
        """Hand messages on to `post`, of which at most so many bytes wait."""
        self._post: Final = post
        self._most: Final = most
        self._lock: Final = threading.Lock()
        self._waiting = 0
        self.dropped = 0

    def put(self, kind: str, payload: bytes) -> None:
        """Have a message wait, or drop it; from any thread."""
        with self._lock:
            fits = self._waiting + len(payload) <= self._most
            if fits:
                self._waiting += len(payload)
            else:
                self.dropped += 1
        if fits:
            self._post(Arrived(kind, payload))
        elif self.dropped == 1:
            _LOG.warning("more comes than can be looked at; dropping messages")

    def taken(self, arrived: Arrived) -> None:
        """Note that a message waits no longer."""
        with self._lock:
            self._waiting -= len(arrived.payload)
