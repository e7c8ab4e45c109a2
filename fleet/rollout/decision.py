"""What to do with the group that runs now: the only place where a rollout's evidence is judged.

The failure threshold is over *executed* devices, as AWS IoT Jobs does it; over the whole group, as hawkBit
does, devices that are switched off hide the failures of the others. Time comes in as a number.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from fleet.rollout.plan import OnFailure, Policy
from fleet.rollout.states import ActionStatus


class Verdict(str, enum.Enum):
    """What is to be done."""

    WAIT = "wait"
    ADVANCE = "advance"
    FINISH = "finish"
    PAUSE = "pause"
    HALT = "halt"
    ROLL_BACK = "roll_back"


class Decision(NamedTuple):
    """A verdict and the reason that a person reads."""

    verdict: Verdict
    reason: str = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far one device of the group is.

    Attributes:
        assigned_at, started_at, finished_at: seconds, or None.
    """

    status: ActionStatus
    assigned_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """A group in numbers.

    Attributes:
        total: devices that count: not canceled.
        late: assigned and not begun in time.
        settled_at: when the last of the executed ended.
    """

    total: int = 0
    late: int = 0
    executed: int = 0
    succeeded: int = 0
    failed: int = 0
    settled_at: float = 0.0

    @property
    def expected(self) -> int:
        """How many are still held to the success threshold."""
        return self.total - self.late


def expired(progress: Progress, policy: Policy, now: float) -> bool:
    """Return whether a device that began has taken longer than it may."""
    if progress.status is not ActionStatus.IN_PROGRESS or progress.started_at is None:
        return False
    return now - progress.started_at > policy.finish_seconds


def late(progress: Progress, policy: Policy, now: float) -> bool:
    """Return whether a device that was given its assignment has not begun in time."""
    if progress.status is not ActionStatus.ASSIGNED or progress.assigned_at is None:
        return False
    return now - progress.assigned_at > policy.start_seconds


def count(group: Iterable[Progress], policy: Policy, now: float) -> Counts:
    """Count a group."""
    members = [x for x in group if x.status is not ActionStatus.CANCELED]
    executed = [x for x in members if x.status.executed]
    return Counts(
        total=len(members),
        late=sum(late(x, policy, now) for x in members),
        executed=len(executed),
        succeeded=sum(x.status is ActionStatus.SUCCEEDED for x in executed),
        failed=sum(x.status.failed for x in executed),
        settled_at=max((x.finished_at or 0.0 for x in executed), default=0.0),
    )


def decide(counts: Counts, policy: Policy, now: float, *, last: bool) -> Decision:
    """Judge the group that runs now.

    Args:
        counts: the group in numbers.
        policy: the rollout's thresholds.
        now: the time.
        last: no group comes after it.
    """
    onward = Verdict.FINISH if last else Verdict.ADVANCE
    if counts.total == 0:
        return Decision(onward)
    return _failures(counts, policy) or _success(counts, policy, now, onward)


def _success(counts: Counts, policy: Policy, now: float, onward: Verdict) -> Decision:
    if counts.expected == 0:
        # Nobody has shown anything: a person must say that the next group may go first.
        return Decision(Verdict.PAUSE, f"none of {counts.total} devices began in time")
    done = counts.executed >= counts.expected
    enough = counts.succeeded / counts.expected >= policy.success
    if done and not enough:
        return Decision(
            Verdict.PAUSE, f"{counts.succeeded} of {counts.expected} succeeded: fewer than asked for"
        )
    # The last group ends when every device has, or is late: nothing is waiting for its evidence.
    if not enough or (onward is Verdict.FINISH and not done):
        return Decision(Verdict.WAIT)
    if now - counts.settled_at < policy.dwell_seconds:
        return Decision(Verdict.WAIT, "under observation")
    return Decision(onward)


def _failures(counts: Counts, policy: Policy) -> Decision | None:
    if counts.executed < min(policy.min_executed, counts.total) or counts.executed == 0:
        return None
    if counts.failed / counts.executed <= policy.failure:
        return None
    verdict = Verdict.ROLL_BACK if policy.on_failure is OnFailure.ROLL_BACK else Verdict.HALT
    reason = f"{counts.failed} of {counts.executed} executed devices failed, more than {policy.failure:.0%}"
    return Decision(verdict, reason)
