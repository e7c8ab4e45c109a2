"""What a rollout does to its devices, inside one transaction: give, take back, go back, follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlmodel import Session, col, select

from fleet.rollout import progress
from fleet.rollout.plan import Policy
from fleet.rollout.states import ActionStatus, GroupState, Move, RolloutState, after
from fleet.wire.messages import UpdateState
from server.db.tables import Action, DeviceModel, Release, ReleaseBundle, Rollout, RolloutGroup
from server.ports.clock import Clock
from server.services.director.assignments import Assignments
from server.services.live import Live
from server.services.rollouts.rows import actions_of, policy_of

_S = ActionStatus
#: What a device was given and has not begun.
_NOT_BEGUN: Final = frozenset({_S.QUEUED, _S.ASSIGNED})
#: What is waited for, before a group or a way back has ended.
_AWAITED: Final = _NOT_BEGUN | {_S.IN_PROGRESS, _S.REVERTING}


class RolloutSteps:
    """Applies decisions and events to rollouts' rows."""

    def __init__(self, clock: Clock, live: Live, assignments: Assignments) -> None:
        """Keep what is needed."""
        self._clock: Final = clock
        self._live: Final = live
        self._assignments: Final = assignments

    def move(self, session: Session, rollout: Rollout, move: Move, reason: str = "") -> None:
        """Move a rollout to its next state, with all that this means for its devices.

        Raises:
            TransitionError: the move is not possible now.
        """
        state = after(RolloutState(rollout.state), move)
        rollout.state, rollout.reason = state.value, reason
        now = self._clock.now()
        if move is Move.APPROVE:
            rollout.started_at = now
        if move in (Move.APPROVE, Move.PROMOTE):
            self.next_group(session, rollout)
        if move in (Move.HALT, Move.ABORT):
            self._take_back(session, rollout)
        if move is Move.ROLL_BACK:
            self._go_back(session, rollout)
        if move in (Move.HALT, Move.ABORT, Move.FINISH, Move.ALL_BACK):
            rollout.finished_at = now
            self._close_groups(session, rollout, move)
        session.add(rollout)
        self._live.publish("rollout", {"id": rollout.id, "state": rollout.state, "reason": reason})

    def next_group(self, session: Session, rollout: Rollout) -> bool:
        """Begin the next group; return False when there is none."""
        now, policy = self._clock.now(), policy_of(rollout)
        self._end_group(session, rollout, GroupState.FINISHED)
        group = session.get(RolloutGroup, (rollout.id, rollout.group + 1))
        if group is None:
            return False
        rollout.group = group.index
        group.state, group.started_at = GroupState.RUNNING.value, now
        session.add_all((group, rollout))
        for action in actions_of(session, rollout, group.index):
            if action.status == _S.QUEUED:
                self._give(session, rollout, action, policy)
        self._live.publish("rollout", {"id": rollout.id, "state": rollout.state, "group": group.index})
        return True

    def _end_group(self, session: Session, rollout: Rollout, state: GroupState) -> None:
        group = session.get(RolloutGroup, (rollout.id, rollout.group))
        if group is not None and group.state == GroupState.RUNNING:
            group.state, group.finished_at = state.value, self._clock.now()
            session.add(group)

    def _close_groups(self, session: Session, rollout: Rollout, move: Move) -> None:
        last = {Move.FINISH: GroupState.FINISHED, Move.HALT: GroupState.ERROR}.get(move, GroupState.CANCELED)
        self._end_group(session, rollout, last)
        query = select(RolloutGroup).where(
            RolloutGroup.rollout_id == rollout.id, RolloutGroup.state == GroupState.SCHEDULED.value
        )
        for group in session.exec(query):
            group.state = GroupState.CANCELED.value
            session.add(group)

    # --- giving and taking ---------------------------------------------------------------------------

    def _give(self, session: Session, rollout: Rollout, action: Action, policy: Policy) -> None:
        action.before, action.before_release = _present(session, action.device_id, rollout.model)
        self._set(session, action, _S.ASSIGNED)
        self._assignments.want(
            session,
            action.device_id,
            rollout.model,
            action.bundle,
            rollout.release_id,
            rollout=action.rollout_id,
            activate_seconds=policy.activate_seconds,
            delivery=policy.groups[action.group_index].delivery,
        )

    def _want_before(self, session: Session, rollout: Rollout, action: Action, *, rollback: bool) -> None:
        self._assignments.want(
            session,
            action.device_id,
            rollout.model,
            action.before,
            action.before_release,
            rollout=action.rollout_id,
            activate_seconds=policy_of(rollout).activate_seconds,
            allow_rollback=rollback,
        )

    def _take_back(self, session: Session, rollout: Rollout) -> None:
        """Cancel what has not begun; what failed is not tried again; what is under way comes to its end."""
        for action in actions_of(session, rollout):
            status = _S(action.status)
            if status is _S.ASSIGNED or status.failed:
                self._want_before(session, rollout, action, rollback=False)
            if status in _NOT_BEGUN:
                self._set(session, action, _S.CANCELED)

    def _go_back(self, session: Session, rollout: Rollout) -> None:
        """Give every device that got, or may get, the release what it had before."""
        for action in actions_of(session, rollout):
            status = _S(action.status)
            if status in (_S.QUEUED, _S.CANCELED):
                self._set(session, action, _S.CANCELED)
                continue
            if _withdrawn(session, action.before_release):
                action.before, action.before_release = "", None
            self._want_before(session, rollout, action, rollback=True)
            if status.failed and status is not _S.TIMED_OUT:
                continue  # it is back already, by itself
            if not action.before:
                # The model stays, and is wanted no more.
                action.reason, action.detail = "nothing_before", "nothing ran before: it keeps this release"
            self._set(session, action, _S.REVERTING if action.before else _S.CANCELED)

    def cancel_device(self, session: Session, device_id: str) -> None:
        """Wait no longer for a device that is shut out: it can neither follow nor report."""
        still = [status.value for status in _AWAITED]
        query = select(Action).where(Action.device_id == device_id, col(Action.status).in_(still))
        for action in session.exec(query):
            action.reason = "revoked"
            self._set(session, action, _S.CANCELED)

    # --- following -----------------------------------------------------------------------------------

    def time_out(self, session: Session, actions: Iterable[Action]) -> None:
        """Mark these actions as having taken too long."""
        for action in actions:
            action.reason, action.detail = (
                "timed_out",
                f"no end within the time allowed; last step {action.step}",
            )
            self._set(session, action, _S.TIMED_OUT)

    def follow_step(
        self,
        session: Session,
        action: Action,
        step: UpdateState,
        reason: str,
        detail: str,
        measured: dict[str, float],
    ) -> None:
        """Take an update event into account."""
        status = progress.after_step(_S(action.status), step, reason)
        action.step = step.value
        action.reason, action.detail = reason or action.reason, detail or action.detail
        action.measured = {**action.measured, **measured}
        self._set(session, action, status)

    def follow_hello(self, session: Session, action: Action, active: str) -> None:
        """Take into account what a device says it runs."""
        self._set(
            session, action, progress.after_hello(_S(action.status), active, action.bundle, action.before)
        )

    def _set(self, session: Session, action: Action, status: ActionStatus) -> None:
        now, old = self._clock.now(), _S(action.status)
        session.add(action)
        if status is old:
            return
        action.status = status.value
        if status is _S.ASSIGNED:
            action.assigned_at = now
        if status is _S.IN_PROGRESS or (status.executed and action.started_at is None):
            action.started_at = now
        if status.executed or status in (_S.CANCELED, _S.REVERTED):
            action.finished_at = now
        self._live.publish(
            "action",
            {
                "rollout": action.rollout_id,
                "device": action.device_id,
                "status": action.status,
                "step": action.step,
                "reason": action.reason,
            },
        )


def _withdrawn(session: Session, release_id: int | None) -> bool:
    """Return whether a release must not be gone back to."""
    release = session.get(Release, release_id) if release_id is not None else None
    return release is not None and release.withdrawn_at is not None


def _present(session: Session, device_id: str, model: str) -> tuple[str, int | None]:
    """Return the bundle to go back to, and its release: what runs, or what was wanted if that is unknown."""
    row = session.get(DeviceModel, (device_id, model))
    if row is None:
        return "", None
    if not row.active or row.active == row.desired:
        return row.desired, row.desired_release
    query = (
        select(Release.id)
        .join(ReleaseBundle, col(ReleaseBundle.release_id) == Release.id)
        .where(Release.model == model, ReleaseBundle.bundle_digest == row.active)
        .order_by(col(Release.counter).desc())
    )
    release = session.exec(query).first()
    return (row.active, release) if release is not None else (row.desired, row.desired_release)
