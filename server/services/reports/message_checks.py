"""What the types of messages do not say: ids that fit their columns, times of a calendar, shares of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fleet.errors import WireError
from fleet.ids import Digest
from fleet.wire.messages import (
    Decommissioned,
    HardRequest,
    Hello,
    Message,
    ModelReport,
    ModelSlot,
    RefusalEvent,
    Status,
    UpdateEvent,
)

ID_LENGTH: Final = 64
DETAIL_LENGTH: Final = 2000
#: Models of one device.
MOST_SLOTS: Final = 64
_SLOT_LENGTH: Final = 200
_MOST_CLASSES: Final = 2**31
#: The last second that a calendar has.
_LAST_TIME: Final = 253402300799.0


def check(message: Message) -> None:
    """Check what the types do not say.

    Raises:
        WireError: an id is empty or too long, a digest is none, or a time is in no calendar.
    """
    if isinstance(message, (ModelReport, UpdateEvent, RefusalEvent, HardRequest, Decommissioned)):
        _check_id("id", message.id)
    if isinstance(message, (Hello, ModelReport, UpdateEvent, RefusalEvent, Status, Decommissioned)):
        _check_id("boot_id", message.boot_id)
    if isinstance(message, (ModelReport, UpdateEvent, HardRequest)):
        Digest(message.bundle)
        _check_id("model", message.model)
    if isinstance(message, (Hello, UpdateEvent, RefusalEvent)):
        _check_time("time", message.time)
        _check_time("monotonic", message.monotonic)
    _check_own(message)


def _check_own(message: Message) -> None:
    if isinstance(message, Hello):
        _check_slots(message.slots)
    elif isinstance(message, ModelReport):
        _check_time("window_start", message.window_start)
        _check_time("window_seconds", message.window_seconds)
    elif isinstance(message, UpdateEvent) and message.rollout:
        _check_id("rollout", message.rollout)
    elif isinstance(message, RefusalEvent):
        _check_id("what", message.what)
    elif isinstance(message, HardRequest):
        _check_request(message)


def _check_request(request: HardRequest) -> None:
    _check_time("time", request.time)
    _check_time("expires", request.expires)
    _check_id("data_class", request.data_class)
    if not 0.0 <= request.score <= 1.0:
        raise WireError(f"score: expected 0 to 1, got {request.score}")
    if not -1 <= request.provisional < _MOST_CLASSES:
        raise WireError(f"provisional: expected a class, or -1 for none, got {request.provisional}")


def _check_slots(slots: Sequence[ModelSlot]) -> None:
    if len(slots) > MOST_SLOTS:
        raise WireError(f"hello: expected at most {MOST_SLOTS} slots, got {len(slots)}")
    for slot in slots:
        _check_id("model", slot.model)
        for name in ("active", "active_version", "previous", "rollout"):
            if len(getattr(slot, name)) > _SLOT_LENGTH:
                raise WireError(f"slot: expected {name} of at most {_SLOT_LENGTH} characters")


def _check_time(name: str, value: float) -> None:
    # not a number compares as false
    if not 0.0 <= value <= _LAST_TIME:
        raise WireError(f"{name}: expected 0 to {_LAST_TIME:.0f} seconds, got {value}")


def _check_id(name: str, value: str) -> None:
    if not 0 < len(value) <= ID_LENGTH or "\0" in value:
        raise WireError(f"{name}: expected 1 to {ID_LENGTH} characters, got {value[:80]!r}")
