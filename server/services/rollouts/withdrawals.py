"""Withdrawing a release: no device installs it from now on, and none is asked to."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session, col, select

from fleet.rollout.states import Move, RolloutState
from server.db.engine import Database
from server.db.tables import Release, Rollout
from server.ports.clock import Clock
from server.services.director.assignments import Assignments
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.roles import Principal
from server.services.people.scopes import Scope
from server.services.releases.projects import Projects
from server.services.releases.releases import release_of
from server.services.rollouts.steps import RolloutSteps

#: Rollouts that may still give the release to a device.
_GIVING: Final = [
    state.value for state in (RolloutState.WAITING_FOR_APPROVAL, RolloutState.RUNNING, RolloutState.PAUSED)
]


class Withdrawals:
    """Takes releases back.

    A device installs what both the director and the image repository name. The director stops at once: every
    assignment that names the release is signed again without it. The image repository's entries leave at once
    where the server signs for the project, and else with the project's next signature.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        live: Live,
        projects: Projects,
        assignments: Assignments,
        steps: RolloutSteps,
    ) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._projects: Final = projects
        self._assignments: Final = assignments
        self._steps: Final = steps

    def withdraw(self, actor: Principal, release_id: int, reason: str = "") -> Release:
        """Withdraw a release, aborting its rollouts; a device that runs it goes on with it.

        Args:
            actor: who withdraws it.
            release_id: the release.
            reason: why, for the audit log and the rollouts.

        Raises:
            NotFoundError: there is no such release.
        """
        with self._database.write() as session:
            release = release_of(session, release_id)
            actor.check(Scope.RELEASES_PUBLISH, model=release.model)
            if release.withdrawn_at is None:
                self._take_back(session, actor, release, reason)
        self._projects.settle()
        self._live.publish("release", {"id": release.id, "model": release.model, "version": release.version})
        return release

    def withdraw_paths(self, actor: Principal, paths: list[str], reason: str) -> None:
        """Withdraw the releases whose entries have left the image repository on purpose."""
        versions = {tuple(path.split("/")[1:3]) for path in paths}
        with self._database.read() as session:
            rows = list(session.exec(select(Release).where(col(Release.withdrawn_at).is_(None))))
        for row in rows:
            if (row.model, row.version) in versions:
                self.withdraw(actor, row.id or 0, reason)

    def _take_back(self, session: Session, actor: Principal, release: Release, reason: str) -> None:
        release.withdrawn_at, release.withdrawn_by = self._clock.now(), actor.name
        session.add(release)
        session.flush()
        why = reason or f"release {release.version} was withdrawn by {actor.name}"
        giving = select(Rollout).where(Rollout.release_id == release.id, col(Rollout.state).in_(_GIVING))
        rollouts = list(session.exec(giving))
        for rollout in rollouts:
            self._steps.move(session, rollout, Move.ABORT, why)
        devices = self._assignments.drop(session, release.id or 0)
        after = {"reason": reason, "rollouts_aborted": [row.id for row in rollouts], "devices": devices}
        self._audit.record(session, actor, "release.withdraw", f"release {release.id}", after=after)
