"""What can happen to an update, and what the machine asks for in return."""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias

from device_agent.update.data import Offer


class Offered(NamedTuple):
    """A verified assignment names a bundle for this model."""

    offer: Offer


class Done(NamedTuple):
    """The action asked for has succeeded, with these measurements."""

    measured: dict[str, float] = {}  # noqa: RUF012 - never changed: messages are frozen


class Failed(NamedTuple):
    """The action asked for has failed."""

    reason: str
    detail: str = ""
    measured: dict[str, float] = {}  # noqa: RUF012 - never changed: messages are frozen


class Restarted(NamedTuple):
    """The agent has started; `clean` when it was asked to stop before, and did not crash."""

    clean: bool


class ActiveBroken(NamedTuple):
    """The active bundle cannot be loaded any more, such as after damage to the disk."""

    detail: str


Event: TypeAlias = Offered | Done | Failed | Restarted | ActiveBroken


class Action(str, enum.Enum):
    """What the driver does next; its outcome comes back as `Done` or `Failed`."""

    DOWNLOAD = "download the bundle's chunks"
    VERIFY = "verify every byte; check that this device fits"
    AWAIT_ACTIVATION = "wait until gates allow it, or the permission ends"
    LOAD = "load and warm up the candidate"
    CHECK_GOLDEN = "run the golden vectors"
    SHADOW = "run the candidate beside the active model"
    CANARY = "let the candidate answer, and watch it"
    COMMIT = "point the links, and free what no slot needs"
    ROLL_BACK = "let the active model answer; unload the candidate"
    TAKE_PENDING = "offer again what came in between"
