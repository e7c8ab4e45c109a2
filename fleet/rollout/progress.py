"""How an action's status follows from what its device reports."""

from __future__ import annotations

from typing import Final

from fleet.rollout.states import ActionStatus
from fleet.wire.messages import UpdateState

#: Reasons with which a device says that it will never take the bundle, whatever is tried.
REJECTIONS: Final = frozenset({"incompatible", "wrong_target", "no_space", "policy"})
#: Reasons that say nothing about the bundle: the server changed its mind.
WITHDRAWALS: Final = frozenset({"superseded", "aborted"})
_OPEN: Final = frozenset({ActionStatus.ASSIGNED, ActionStatus.IN_PROGRESS, ActionStatus.TIMED_OUT})


def after_step(status: ActionStatus, step: UpdateState, reason: str) -> ActionStatus:
    """Return the status after an update event; a late or repeated event changes nothing that is decided.

    A device that timed out and then succeeds has succeeded: what runs there is the truth.
    """
    if status is ActionStatus.REVERTING:
        return ActionStatus.REVERTED if step is UpdateState.COMMITTED else status
    if status not in _OPEN:
        return status
    if step is UpdateState.COMMITTED:
        return ActionStatus.SUCCEEDED
    if step is UpdateState.ROLLED_BACK:
        return _ended_badly(reason)
    if step is UpdateState.IDLE or status is ActionStatus.TIMED_OUT:
        return status
    return ActionStatus.IN_PROGRESS


def _ended_badly(reason: str) -> ActionStatus:
    if reason in WITHDRAWALS:
        return ActionStatus.CANCELED
    return ActionStatus.REJECTED if reason in REJECTIONS else ActionStatus.FAILED


def after_hello(status: ActionStatus, active: str, bundle: str, before: str) -> ActionStatus:
    """Return the status after a device said what it runs: events may have been lost, this was not.

    Args:
        status: the present one.
        active: digest of the running bundle's manifest.
        bundle: digest of the one that the rollout brings.
        before: digest of the one that ran before, "" for none.
    """
    if status is ActionStatus.REVERTING:
        return ActionStatus.REVERTED if active != bundle or active == before else status
    if status in _OPEN and active == bundle:
        return ActionStatus.SUCCEEDED
    return status
