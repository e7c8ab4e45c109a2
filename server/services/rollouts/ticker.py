"""What happens to rollouts as time passes: groups end, and the next one begins, or all stops or goes back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from sqlmodel import Session, col, select

from fleet.rollout.decision import Decision, Verdict, count, decide, expired
from fleet.rollout.plan import Policy
from fleet.rollout.states import ACTIVE, ActionStatus, Move, RolloutState
from server.db.engine import Database
from server.db.tables import Action, Rollout, RolloutGroup
from server.ports.clock import Clock
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM
from server.services.rollouts.rows import actions_of, policy_of, progress_of, rollout_of
from server.services.rollouts.steps import RolloutSteps

LOG: Final = logging.getLogger("kedge.rollouts")


class RolloutTicker:
    """Looks at the rollouts that are under way, and does what their policies say."""

    def __init__(self, database: Database, clock: Clock, audit: Audit, steps: RolloutSteps) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._steps: Final = steps

    def tick(self) -> int:
        """Look at every rollout that is under way, and move on those that can; return how many moved."""
        with self._database.read() as session:
            states = [state.value for state in ACTIVE]
            ids = list(session.exec(select(Rollout.id).where(col(Rollout.state).in_(states))))
        return sum(self._tick_one(rollout_id or 0) for rollout_id in ids)

    def _tick_one(self, rollout_id: int) -> bool:
        with self._database.read() as session:
            if not self._step(session, rollout_of(session, rollout_id), dry=True):
                return False
        # Something is to be done: look again, now holding the database, for it may have changed meanwhile.
        with self._database.write() as session:
            return self._step(session, rollout_of(session, rollout_id), dry=False)

    def _step(self, session: Session, rollout: Rollout, *, dry: bool) -> bool:
        now, policy = self._clock.now(), policy_of(rollout)
        actions = actions_of(session, rollout)
        if rollout.state == RolloutState.ROLLING_BACK:
            return self._step_back(session, rollout, actions, dry=dry)
        overdue = [action for action in actions if expired(progress_of(action), policy, now)]
        decision = self._judge(session, rollout, actions, policy)
        if dry:
            return bool(overdue) or decision.verdict is not Verdict.WAIT
        self._steps.time_out(session, overdue)
        decision = self._judge(session, rollout, actions, policy)
        self._apply(session, rollout, decision)
        return True

    def _judge(
        self, session: Session, rollout: Rollout, actions: Sequence[Action], policy: Policy
    ) -> Decision:
        now = self._clock.now()
        group = [progress_of(a) for a in actions if a.group_index == rollout.group]
        last = session.get(RolloutGroup, (rollout.id, rollout.group + 1)) is None
        decision = decide(count(group, policy, now), policy, now, last=last)
        stops = decision.verdict in (Verdict.HALT, Verdict.ROLL_BACK)
        return decision if stops or rollout.state == RolloutState.RUNNING else Decision(Verdict.WAIT)

    def _apply(self, session: Session, rollout: Rollout, decision: Decision) -> None:
        moves = {
            Verdict.FINISH: Move.FINISH,
            Verdict.PAUSE: Move.PAUSE,
            Verdict.HALT: Move.HALT,
            Verdict.ROLL_BACK: Move.ROLL_BACK,
        }
        if decision.verdict is Verdict.ADVANCE:
            self._steps.next_group(session, rollout)
        elif decision.verdict in moves:
            before, move = {"state": rollout.state}, moves[decision.verdict]
            self._steps.move(session, rollout, move, decision.reason)
            after = {"state": rollout.state, "reason": decision.reason}
            self._audit.record(
                session, SYSTEM, f"rollout.{move.value}", f"rollout {rollout.id}", before=before, after=after
            )
            LOG.info("rollout %s: %s %s", rollout.id, rollout.state, decision.reason)

    def _step_back(self, session: Session, rollout: Rollout, actions: Sequence[Action], *, dry: bool) -> bool:
        left = [a for a in actions if a.status == ActionStatus.REVERTING]
        if left:
            return False
        if not dry:
            self._steps.move(session, rollout, Move.ALL_BACK, rollout.reason)
        return True
