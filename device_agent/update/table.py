"""The transition table: every change of state that an update can make, one row per line.

States carry Mender's and hawkBit's names (`fleet.wire.messages.UpdateState`). What is not in the table
changes nothing: a repeated message, or a result that comes too late.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from device_agent.update import effects
from device_agent.update.data import UpdateData
from device_agent.update.events import Action, Event
from fleet.wire.messages import UpdateState as S


class Trigger(str, enum.Enum):
    """What an event means for the model as it stands."""

    NEW_OFFER = "a new bundle is offered"
    ACTIVE_OFFER = "the active bundle is offered again"
    SAME_OFFER = "the same offer came again"
    DONE = "done"
    FAILED = "failed"
    RESTARTED = "the agent restarted"
    CRASH_LOOP = "crashed too often"
    ACTIVE_BROKEN = "the active bundle does not load"


Effect: TypeAlias = Callable[[UpdateData, Event], UpdateData]
States: TypeAlias = tuple[S, ...]

RESTING: Final[States] = (S.IDLE, S.COMMITTED, S.ROLLED_BACK)
#: The candidate is only bytes: a power cut here says nothing about it.
FETCHING: Final[States] = (S.DOWNLOADING, S.VERIFYING, S.STAGED)
#: The candidate's code runs: a crash here counts against it.
RUNNING: Final[States] = (S.LOADING, S.GOLDEN_CHECK, S.SHADOW, S.CANARY)
BUSY: Final[States] = FETCHING + RUNNING


class Row(NamedTuple):
    """One row: from these states, on this trigger, to that state (None: stay), changing data by `effect`."""

    sources: States
    trigger: Trigger
    target: S | None
    effect: Effect


ROWS: Final = (
    # at rest
    Row(RESTING, Trigger.NEW_OFFER, S.DOWNLOADING, effects.begin),
    Row(RESTING, Trigger.ACTIVE_OFFER, S.COMMITTED, effects.adopt),
    Row(RESTING, Trigger.ACTIVE_BROKEN, S.ROLLING_BACK, effects.fall_back),
    Row(RESTING, Trigger.RESTARTED, None, effects.keep),
    # forward
    Row((S.DOWNLOADING,), Trigger.DONE, S.VERIFYING, effects.measure),
    Row((S.VERIFYING,), Trigger.DONE, S.STAGED, effects.measure),
    Row((S.STAGED,), Trigger.DONE, S.LOADING, effects.measure),
    Row((S.LOADING,), Trigger.DONE, S.GOLDEN_CHECK, effects.measure),
    Row((S.GOLDEN_CHECK,), Trigger.DONE, S.SHADOW, effects.measure),
    Row((S.SHADOW,), Trigger.DONE, S.CANARY, effects.measure),
    Row((S.CANARY,), Trigger.DONE, S.COMMITTED, effects.commit),
    # any fault
    Row(BUSY, Trigger.FAILED, S.ROLLING_BACK, effects.fail),
    Row(BUSY, Trigger.NEW_OFFER, S.ROLLING_BACK, effects.supersede),
    Row(BUSY, Trigger.ACTIVE_OFFER, S.ROLLING_BACK, effects.abort),
    Row(BUSY, Trigger.SAME_OFFER, None, effects.renew),
    Row(BUSY, Trigger.ACTIVE_BROKEN, None, effects.lose_active),
    # power cuts and crashes
    Row(FETCHING, Trigger.RESTARTED, None, effects.keep),
    Row(RUNNING, Trigger.RESTARTED, S.LOADING, effects.count_crash),
    Row(RUNNING, Trigger.CRASH_LOOP, S.ROLLING_BACK, effects.crash),
    # the way back
    Row((S.ROLLING_BACK,), Trigger.DONE, S.ROLLED_BACK, effects.give_up),
    Row((S.ROLLING_BACK,), Trigger.FAILED, S.ROLLED_BACK, effects.give_up),
    Row((S.ROLLING_BACK,), Trigger.NEW_OFFER, None, effects.queue),
    Row((S.ROLLING_BACK,), Trigger.ACTIVE_OFFER, None, effects.queue),
    Row((S.ROLLING_BACK,), Trigger.ACTIVE_BROKEN, None, effects.lose_active),
    Row((S.ROLLING_BACK,), Trigger.RESTARTED, None, effects.keep),
)

TABLE: Final = {(source, row.trigger): row for row in ROWS for source in row.sources}

#: What the driver does in a state, on entry and again after a restart.
ACTIONS: Final = {
    S.DOWNLOADING: Action.DOWNLOAD,
    S.VERIFYING: Action.VERIFY,
    S.STAGED: Action.AWAIT_ACTIVATION,
    S.LOADING: Action.LOAD,
    S.GOLDEN_CHECK: Action.CHECK_GOLDEN,
    S.SHADOW: Action.SHADOW,
    S.CANARY: Action.CANARY,
    S.COMMITTED: Action.COMMIT,
    S.ROLLING_BACK: Action.ROLL_BACK,
    S.ROLLED_BACK: Action.TAKE_PENDING,
}
