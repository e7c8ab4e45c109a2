"""What is shown of rollouts: their groups, their devices' parts, how many are where, and why some failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlmodel import col, func, select

from fleet.rollout.decision import late
from fleet.rollout.states import ActionStatus
from server.db.engine import Database
from server.db.tables import Action, Rollout, RolloutGroup
from server.errors import NotFoundError
from server.ports.clock import Clock
from server.services.people.roles import Principal
from server.services.people.scoped_queries import of_models
from server.services.people.scopes import Grant, Scope
from server.services.rollouts.rows import policy_of, progress_of, rollout_of


class RolloutViews:
    """Reads rollouts."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock

    def page(
        self, state: str = "", offset: int = 0, limit: int = 100, within: Sequence[Grant] | None = None
    ) -> list[Rollout]:
        """Return rollouts, the newest first, in one state or in any, that one of the grants covers."""
        query = select(Rollout).order_by(col(Rollout.id).desc()).offset(offset).limit(limit)
        if within is not None:
            query = query.where(of_models(col(Rollout.model), within))
        if state:
            query = query.where(Rollout.state == state)
        with self._database.read() as session:
            return list(session.exec(query))

    def get(self, rollout_id: int) -> Rollout:
        """Return one rollout.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._database.read() as session:
            return rollout_of(session, rollout_id)

    def seen(self, reader: Principal, rollout_id: int) -> Rollout:
        """Return one rollout that the reader may see.

        Raises:
            NotFoundError: there is none of this id, or it is outside the reader's scopes.
        """
        rollout = self.get(rollout_id)
        if not reader.covers(Scope.ROLLOUTS_READ, model=rollout.model):
            raise NotFoundError(f"rollout {rollout_id}: expected an existing one")
        return rollout

    def groups(self, rollout_id: int) -> list[RolloutGroup]:
        """Return a rollout's groups, in order."""
        query = (
            select(RolloutGroup)
            .where(RolloutGroup.rollout_id == rollout_id)
            .order_by(col(RolloutGroup.index))
        )
        with self._database.read() as session:
            return list(session.exec(query))

    def counts(self, rollout_id: int) -> dict[int, dict[str, int]]:
        """Return how many of each group's devices are in each status; "late" counts some of the assigned."""
        rollout = self.get(rollout_id)
        now, policy = self._clock.now(), policy_of(rollout)
        found: dict[int, dict[str, int]] = {}
        query = select(Action.group_index, Action.status, func.count()).where(Action.rollout_id == rollout_id)
        with self._database.read() as session:
            for group, status, number in session.exec(query.group_by(col(Action.group_index), Action.status)):
                found.setdefault(group, {})[status] = number
            assigned = select(Action).where(
                Action.rollout_id == rollout_id, Action.status == ActionStatus.ASSIGNED.value
            )
            for action in session.exec(assigned):
                if late(progress_of(action), policy, now):
                    group_counts = found[action.group_index]
                    group_counts["late"] = group_counts.get("late", 0) + 1
        return found

    def actions(
        self, rollout_id: int, group: int | None = None, status: str = "", offset: int = 0, limit: int = 100
    ) -> list[Action]:
        """Return a rollout's devices' parts, by group and device."""
        query = select(Action).where(Action.rollout_id == rollout_id)
        if group is not None:
            query = query.where(Action.group_index == group)
        if status:
            query = query.where(Action.status == status)
        query = query.order_by(col(Action.group_index), Action.device_id).offset(offset).limit(limit)
        with self._database.read() as session:
            return list(session.exec(query))

    def failures(self, rollout_id: int) -> dict[str, int]:
        """Return how many devices failed for each reason."""
        failed = [status.value for status in ActionStatus if status.failed]
        query = (
            select(Action.reason, func.count())
            .where(Action.rollout_id == rollout_id, col(Action.status).in_(failed))
            .group_by(Action.reason)
        )
        with self._database.read() as session:
            return {reason or "unknown": number for reason, number in session.exec(query)}
