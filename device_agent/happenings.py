"""What happens to an agent; its own thread takes one thing at a time."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from device_agent.carrying import Carried
from device_agent.driver import Outcome
from fleet.errors import KedgeError
from fleet.trust.assignment import Assignment


class Connected(NamedTuple):
    """The broker's connection came, or went."""

    up: bool


class Arrived(NamedTuple):
    """A message came on one of the device's own topics."""

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
