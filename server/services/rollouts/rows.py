"""Rollouts as the database keeps them: found, and told as the rules of rollouts want them."""

from __future__ import annotations

import msgspec
from sqlmodel import Session, col, select

from fleet.rollout.decision import Progress
from fleet.rollout.plan import Policy
from fleet.rollout.states import ActionStatus
from server.db.tables import Action, Rollout
from server.errors import NotFoundError


def rollout_of(session: Session, rollout_id: int) -> Rollout:
    """Return one rollout.

    Raises:
        NotFoundError: there is none of this id.
    """
    rollout = session.get(Rollout, rollout_id)
    if rollout is None:
        raise NotFoundError(f"rollout {rollout_id}: expected an existing one")
    return rollout


def policy_of(rollout: Rollout) -> Policy:
    """Return the rollout's policy."""
    return msgspec.convert(rollout.policy, Policy)


def progress_of(action: Action) -> Progress:
    """Return what the decision needs of an action."""
    return Progress(
        status=ActionStatus(action.status),
        assigned_at=action.assigned_at,
        started_at=action.started_at,
        finished_at=action.finished_at,
    )


def actions_of(session: Session, rollout: Rollout, group: int | None = None) -> list[Action]:
    """Return a rollout's actions, of one group or of all, by device."""
    query = select(Action).where(Action.rollout_id == rollout.id)
    if group is not None:
        query = query.where(Action.group_index == group)
    return list(session.exec(query.order_by(Action.device_id)))


def open_actions(session: Session, device_id: str, model: str) -> list[Action]:
    """Return a device's actions of one model that may still change, the oldest first."""
    still = [
        status.value
        for status in (
            ActionStatus.ASSIGNED,
            ActionStatus.IN_PROGRESS,
            ActionStatus.TIMED_OUT,
            ActionStatus.REVERTING,
        )
    ]
    query = (
        select(Action)
        .join(Rollout, col(Rollout.id) == Action.rollout_id)
        .where(Action.device_id == device_id, Rollout.model == model, col(Action.status).in_(still))
        .order_by(col(Action.id))
    )
    return list(session.exec(query))
