"""A circuit breaker per pool, as one transition table: after failures, leave it alone for a while."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

#: Failures in a row that open it.
FAILURES: Final = 3
#: The first cool-down in seconds; it doubles with each failed probe, up to the longest.
COOL_DOWN: Final = 5.0
LONGEST: Final = 300.0


class BreakerState(str, enum.Enum):
    """What the breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Outcome(str, enum.Enum):
    """What happened at the pool."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """The breaker of one pool.

    Attributes:
        failures: in a row.
        cool_down: seconds of the next or present pause.
        until: when a probe may go through, while open.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    cool_down: float = COOL_DOWN
    until: float = 0.0

    def allows(self, now: float) -> bool:
        """Return whether a request may go through."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.OPEN and now >= self.until)

    def after(self, outcome: Outcome, now: float) -> Breaker:
        """Return the breaker after something happened."""
        failures = {Outcome.SUCCEEDED: 0, Outcome.FAILED: self.failures + 1}.get(outcome, self.failures)
        state = _TABLE.get((self.state, outcome), self.state)
        if self.state is BreakerState.CLOSED and failures >= FAILURES:
            state = BreakerState.OPEN
        if state is BreakerState.CLOSED:
            return Breaker(failures=failures)
        if state is BreakerState.OPEN and self.state is not BreakerState.OPEN:
            pause = min(self.cool_down * 2, LONGEST) if self.state is BreakerState.PROBING else self.cool_down
            return Breaker(state=state, failures=failures, cool_down=pause, until=now + pause)
        return msgspec.structs.replace(self, state=state, failures=failures)


#: (state, outcome) to the next state; pairs that are missing change nothing.
_TABLE: Final = {
    (BreakerState.OPEN, Outcome.STARTED): BreakerState.PROBING,
    (BreakerState.OPEN, Outcome.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.PROBING, Outcome.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.PROBING, Outcome.FAILED): BreakerState.OPEN,
}
