"""The plan of a rollout: which device is in which group, and when a group is good enough.

Groups come one after another. The first is the canary: small, so that a bad release meets few devices.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from fleet.errors import UserError
from fleet.quantity import parse_bytes
from fleet.trust.delivery import MOST_JITTER, Delivery

#: No rollout has more groups.
MAX_GROUPS: Final = 50
#: A slower group would not be done in weeks.
LEAST_RATE: Final = 1000
_GROUP: Final = re.compile(r"(?P<size>[^@~]+)(@(?P<rate>[^@~]+?)(/s)?)?(~(?P<jitter>[^@~]+?)s?)?")


class PlanError(UserError):
    """The plan makes no sense."""


class OnFailure(str, enum.Enum):
    """What a rollout does by itself when a group's failures pass the threshold."""

    HALT = "halt"
    ROLL_BACK = "roll_back"


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large a group is: a count of devices, or the percentage of all that is reached when it is done.

    `10%, 50%, 100%` are groups of 10, 40 and 50 per cent. The last group takes whatever is left.

    Attributes:
        rate: bytes a second that each of its devices downloads at most; 0 for no limit.
        jitter: seconds over which its devices begin.
    """

    percent: float | None = None
    count: int | None = None
    rate: int = 0
    jitter: float = 0.0

    @property
    def delivery(self) -> Delivery:
        """What its devices' assignments say of how to take them."""
        return Delivery(rate=self.rate, jitter=math.ceil(self.jitter))

    def check(self) -> None:
        """Check that exactly one size is given, and is possible.

        Raises:
            PlanError: it is not.
        """
        if (self.percent is None) == (self.count is None):
            raise PlanError("group: expected either a percentage or a count")
        if self.percent is not None and not 0 < self.percent <= 100:  # noqa: PLR2004 - per cent
            raise PlanError(f"group: expected a percentage above 0 and at most 100, got {self.percent:g}")
        if self.count is not None and self.count < 1:
            raise PlanError(f"group: expected a count of at least 1, got {self.count}")
        if self.rate and self.rate < LEAST_RATE:
            raise PlanError(
                f"group: expected a rate of at least {LEAST_RATE} bytes a second, got {self.rate}"
            )
        if not 0 <= self.jitter <= MOST_JITTER:
            raise PlanError(f"group: expected a jitter of 0 to {MOST_JITTER:g} seconds, got {self.jitter:g}")

    def size(self, total: int) -> int:
        """Return how many of `total` devices the group wants; a share is rounded up."""
        if self.count is not None:
            return self.count
        return math.ceil(total * (self.percent or 0.0) / 100 - 1e-9)


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a rollout goes on, and when it stops by itself.

    Attributes:
        groups: sizes, in order.
        success: share of a group's devices that must have succeeded before the next group begins; devices
            that are late (given their assignment and not begun within `start_seconds`) are not counted.
        failure: the rollout stops when more than this share of the group's *executed* devices failed.
        min_executed: so many devices (or all of the group) must have been executed before `failure` counts.
        on_failure: what "stops" means.
        start_seconds: a device that has not begun by then is late: it no longer holds its group up.
        finish_seconds: a device that began and has not ended by then has failed.
        dwell_seconds: a group stays under observation this long after it is good enough.
        activate_seconds: a device may activate what it has staged and verified for this long.
    """

    groups: tuple[GroupSpec, ...] = (GroupSpec(percent=10.0), GroupSpec(percent=100.0))
    success: float = 1.0
    failure: float = 0.0
    min_executed: int = 1
    on_failure: OnFailure = OnFailure.HALT
    start_seconds: float = 24 * 3600.0
    finish_seconds: float = 3600.0
    dwell_seconds: float = 0.0
    activate_seconds: float = 30 * 24 * 3600.0

    def check(self) -> None:
        """Check every value.

        Raises:
            PlanError: a value is out of its range.
        """
        if not 1 <= len(self.groups) <= MAX_GROUPS:
            raise PlanError(f"rollout: expected 1 to {MAX_GROUPS} groups, got {len(self.groups)}")
        for group in self.groups:
            group.check()
        if not 0 < self.success <= 1:
            raise PlanError(f"success: expected a share above 0 and at most 1, got {self.success:g}")
        if not 0 <= self.failure < 1:
            raise PlanError(f"failure: expected a share from 0 to below 1, got {self.failure:g}")
        if self.min_executed < 1:
            raise PlanError(f"min_executed: expected at least 1, got {self.min_executed}")
        for name in ("start_seconds", "finish_seconds", "activate_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise PlanError(f"{name}: expected more than 0, got {getattr(self, name):g}")
        if not 0 <= self.dwell_seconds < math.inf:
            raise PlanError(f"dwell_seconds: expected 0 or more, got {self.dwell_seconds:g}")


def parse_groups(text: str) -> tuple[GroupSpec, ...]:
    """Read groups as people write them: `1,10%,100%`, or with limits `1,10%@500KB,100%@1MB~300`.

    Behind `@` stand the bytes a second that each device of the group downloads at most, behind `~` the
    seconds over which its devices begin.

    Raises:
        PlanError: a part is neither a count nor a percentage, or a limit makes no sense.
    """
    return tuple(_parse_group(part.strip()) for part in text.split(","))


def _parse_group(part: str) -> GroupSpec:
    found = _GROUP.fullmatch(part)
    try:
        if found is None:
            raise ValueError  # noqa: TRY301 - told below, as what float() does not take
        rate = parse_bytes(found["rate"]) if found["rate"] else 0
        jitter = float(found["jitter"] or 0.0)
        size = found["size"]
        if size.endswith("%"):
            spec = GroupSpec(percent=float(size[:-1]), rate=rate, jitter=jitter)
        else:
            spec = GroupSpec(count=int(size), rate=rate, jitter=jitter)
    except ValueError:
        raise PlanError(
            f"group: expected a count or a percentage such as 1, 10% or 10%@500KB~60, got {part!r}"
        ) from None
    spec.check()
    return spec


def order(devices: Iterable[str], seed: str) -> list[str]:
    """Return the devices in an order that is fixed for the seed and fair over seeds.

    Ordering by name would make the same devices every rollout's canaries.
    """
    return sorted(devices, key=lambda device: hashlib.sha256(f"{seed}/{device}".encode()).digest())


def assign(devices: Sequence[str], groups: Sequence[GroupSpec]) -> list[list[str]]:
    """Cut the devices, in their order, into groups.

    Every device is in exactly one group. A group may be empty when those before it took all.
    """
    cut: list[list[str]] = []
    taken = 0
    for index, group in enumerate(groups):
        last = index == len(groups) - 1
        # A share is of the whole: "10 %, 50 %, 100 %" brings the total to that much.
        upto = len(devices) if last else max(taken, _upto(group, taken, len(devices)))
        cut.append(list(devices[taken:upto]))
        taken = upto
    return cut


def _upto(group: GroupSpec, taken: int, total: int) -> int:
    if group.count is not None:
        return min(total, taken + group.count)
    return min(total, group.size(total))
