"""The states of rollouts, groups and actions, and the one table of what may follow what.

Rollout and group states are named after Eclipse hawkBit's, action statuses after AWS IoT Jobs' executions.
"""

from __future__ import annotations

import enum
from typing import Final

from fleet.errors import KedgeError


class TransitionError(KedgeError):
    """A rollout cannot do that in the state it is in."""


class RolloutState(str, enum.Enum):
    """Where a rollout stands."""

    WAITING_FOR_APPROVAL = "waiting_for_approval"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    ABORTED = "aborted"
    FINISHED = "finished"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


class Move(str, enum.Enum):
    """What makes a rollout change its state: a person's command, or the tick's decision."""

    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"
    ROLL_BACK = "roll_back"
    HALT = "halt"
    FINISH = "finish"
    ALL_BACK = "all_back"


class GroupState(str, enum.Enum):
    """Where a group stands."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    FINISHED = "finished"
    ERROR = "error"
    CANCELED = "canceled"


class ActionStatus(str, enum.Enum):
    """Where one device's part in a rollout stands.

    A device that was given its assignment and has not begun may be offline: it stays ASSIGNED and may still
    follow later. TIMED_OUT is for one that began and did not come to an end.
    """

    QUEUED = "queued"
    ASSIGNED = "assigned"
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"
    CANCELED = "canceled"
    REVERTING = "reverting"
    REVERTED = "reverted"

    @property
    def executed(self) -> bool:
        """Whether it came to an end that says something about the release."""
        return self in _EXECUTED

    @property
    def failed(self) -> bool:
        """Whether that end speaks against the release."""
        return self in _FAILED


_FAILED: Final = frozenset({ActionStatus.FAILED, ActionStatus.TIMED_OUT, ActionStatus.REJECTED})
_EXECUTED: Final = _FAILED | {ActionStatus.SUCCEEDED}

_S, _M = RolloutState, Move
#: The one table: a state and a move give the next state; what is not here is refused.
TRANSITIONS: Final[dict[tuple[RolloutState, Move], RolloutState]] = {
    (_S.WAITING_FOR_APPROVAL, _M.APPROVE): _S.RUNNING,
    (_S.WAITING_FOR_APPROVAL, _M.ABORT): _S.ABORTED,
    (_S.RUNNING, _M.PAUSE): _S.PAUSED,
    (_S.RUNNING, _M.PROMOTE): _S.RUNNING,
    (_S.RUNNING, _M.HALT): _S.HALTED,
    (_S.RUNNING, _M.FINISH): _S.FINISHED,
    (_S.RUNNING, _M.ABORT): _S.ABORTED,
    (_S.RUNNING, _M.ROLL_BACK): _S.ROLLING_BACK,
    (_S.PAUSED, _M.RESUME): _S.RUNNING,
    (_S.PAUSED, _M.PROMOTE): _S.RUNNING,
    (_S.PAUSED, _M.HALT): _S.HALTED,
    (_S.PAUSED, _M.ABORT): _S.ABORTED,
    (_S.PAUSED, _M.ROLL_BACK): _S.ROLLING_BACK,
    (_S.HALTED, _M.ABORT): _S.ABORTED,
    (_S.HALTED, _M.ROLL_BACK): _S.ROLLING_BACK,
    (_S.ABORTED, _M.ROLL_BACK): _S.ROLLING_BACK,
    (_S.FINISHED, _M.ROLL_BACK): _S.ROLLING_BACK,
    (_S.ROLLING_BACK, _M.ALL_BACK): _S.ROLLED_BACK,
}

#: States in which the tick has something to decide.
ACTIVE: Final = frozenset({_S.RUNNING, _S.PAUSED, _S.ROLLING_BACK})


def after(state: RolloutState, move: Move) -> RolloutState:
    """Return the state after a move.

    Raises:
        TransitionError: the move is not possible in this state.
    """
    try:
        return TRANSITIONS[state, move]
    except KeyError:
        possible = ", ".join(m.value for m in moves(state)) or "nothing"
        raise TransitionError(
            f"rollout: cannot {move.value.replace('_', ' ')} while {state.value}; possible: {possible}"
        ) from None


def moves(state: RolloutState) -> tuple[Move, ...]:
    """Return the moves that are possible in a state, in the order of `Move`."""
    return tuple(move for move in Move if (state, move) in TRANSITIONS)
