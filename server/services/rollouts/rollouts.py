"""Rollouts as people make and steer them: preview, create, approve, pause, promote, abort, roll back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from sqlmodel import Session, select

from fleet.rollout import plan
from fleet.rollout.plan import Policy
from fleet.rollout.states import ActionStatus, GroupState, Move, RolloutState, TransitionError
from server.db.engine import Database
from server.db.tables import Action, BundleRow, Release, Rollout, RolloutGroup
from server.errors import ConflictError, InvalidError
from server.ports.clock import Clock
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.labels import checked_labels
from server.services.people.roles import Principal
from server.services.people.scopes import Scope
from server.services.releases.releases import release_of
from server.services.rollouts.candidates import Selection, candidates
from server.services.rollouts.rows import rollout_of
from server.services.rollouts.steps import RolloutSteps


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout would do.

    Attributes:
        devices: those that it would bring the release to.
        skipped: device to the reason why not.
        offline: how many of `devices` are not connected now.
        group_sizes: how many devices each group would have.
        bytes: what those devices would download at most.
    """

    devices: tuple[str, ...]
    skipped: dict[str, str]
    offline: int
    group_sizes: tuple[int, ...]
    bytes: int


class Rollouts:
    """Creates and steers rollouts."""

    def __init__(
        self, database: Database, clock: Clock, audit: Audit, live: Live, steps: RolloutSteps
    ) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._steps: Final = steps

    # --- creating ------------------------------------------------------------------------------------

    def preview(self, reader: Principal, release_id: int, selection: Selection, policy: Policy) -> Preview:
        """Return what a rollout would do, and whom it would leave out, and why.

        Raises:
            NotFoundError: there is no such release.
            InvalidError: a label is none.
            PlanError: the policy makes no sense.
        """
        policy.check()
        checked_labels(selection.labels)
        with self._database.read() as session:
            release = release_of(session, release_id)
            reader.check(Scope.ROLLOUTS_WRITE, model=release.model, labels=selection.labels)
            found = candidates(session, release, selection)
            sizes = {x.digest: x.device_bytes for x in session.exec(select(BundleRow))}
        groups = plan.assign(plan.order(found.bundles, ""), policy.groups)
        return Preview(
            devices=tuple(sorted(found.bundles)),
            skipped=found.skipped,
            offline=sum(not device.online for device in found.devices),
            group_sizes=tuple(len(group) for group in groups),
            bytes=sum(sizes.get(bundle, 0) for bundle in found.bundles.values()),
        )

    def create(
        self,
        actor: Principal,
        *,
        release_id: int,
        selection: Selection,
        policy: Policy,
        name: str = "",
        approve: bool = False,
    ) -> Rollout:
        """Plan a rollout; with `approve`, begin it at once.

        Raises:
            NotFoundError: there is no such release.
            ConflictError: the release is not signed yet, or was withdrawn.
            InvalidError: no device is left to bring the release to, or a label is none.
            PlanError: the policy makes no sense.
        """
        policy.check()
        checked_labels(selection.labels)
        with self._database.write() as session:
            release = release_of(session, release_id)
            actor.check(Scope.ROLLOUTS_WRITE, model=release.model, labels=selection.labels)
            _check_ready(release)
            found = candidates(session, release, selection)
            if not found.devices:
                raise InvalidError(f"rollout: no device to bring the release to{found.why_none()}")
            rollout = self._insert(session, actor, release, name, selection, policy)
            groups = plan.assign(plan.order(found.bundles, str(rollout.id)), policy.groups)
            self._insert_groups(session, rollout, groups, found.bundles)
            after = {"release": release_id, "devices": len(found.devices), "policy": rollout.policy}
            after |= {"approved": approve}
            self._audit.record(session, actor, "rollout.create", f"rollout {rollout.id}", after=after)
            if approve:
                self._steps.move(session, rollout, Move.APPROVE)
        self._live.publish("rollout", {"id": rollout.id, "state": rollout.state})
        return rollout

    def _insert(
        self,
        session: Session,
        actor: Principal,
        release: Release,
        name: str,
        selection: Selection,
        policy: Policy,
    ) -> Rollout:
        rollout = Rollout(
            name=name or f"{release.model} {release.version}",
            release_id=release.id or 0,
            model=release.model,
            state=RolloutState.WAITING_FOR_APPROVAL.value,
            policy=msgspec.to_builtins(policy),
            selection=msgspec.to_builtins(selection),
            created_by=actor.name,
            created_at=self._clock.now(),
        )
        session.add(rollout)
        session.flush()
        return rollout

    def _insert_groups(
        self, session: Session, rollout: Rollout, groups: Sequence[Sequence[str]], bundles: Mapping[str, str]
    ) -> None:
        rollout_id = rollout.id or 0
        for index, members in enumerate(groups):
            session.add(
                RolloutGroup(
                    rollout_id=rollout_id,
                    index=index,
                    name="canary" if index == 0 and len(groups) > 1 else f"group {index + 1}",
                    state=GroupState.SCHEDULED.value,
                    size=len(members),
                )
            )
        session.flush()
        for index, members in enumerate(groups):
            session.add_all(
                Action(
                    rollout_id=rollout_id,
                    group_index=index,
                    device_id=device,
                    status=ActionStatus.QUEUED.value,
                    bundle=bundles[device],
                    created_at=self._clock.now(),
                )
                for device in members
            )
        session.flush()

    # --- steering ------------------------------------------------------------------------------------

    def command(self, actor: Principal, rollout_id: int, move: Move, reason: str = "") -> Rollout:
        """Do what a person asks: approve, pause, resume, promote, abort or roll back.

        Raises:
            NotFoundError: there is no such rollout.
            ConflictError: it cannot do that in the state it is in.
        """
        with self._database.write() as session:
            rollout = rollout_of(session, rollout_id)
            labels = msgspec.convert(rollout.selection, Selection).labels
            actor.check(Scope.ROLLOUTS_WRITE, model=rollout.model, labels=labels)
            before = {"state": rollout.state, "group": rollout.group}
            if move is Move.PROMOTE and session.get(RolloutGroup, (rollout_id, rollout.group + 1)) is None:
                raise ConflictError(f"rollout {rollout_id}: its last group runs already")
            try:
                self._steps.move(session, rollout, move, reason or f"by {actor.name}")
            except TransitionError as error:
                raise ConflictError(str(error)) from error
            after = {"state": rollout.state, "group": rollout.group, "reason": rollout.reason}
            self._audit.record(
                session, actor, f"rollout.{move.value}", f"rollout {rollout_id}", before=before, after=after
            )
        return rollout


def _check_ready(release: Release) -> None:
    if release.signed_at is None:
        raise ConflictError(f"release {release.model} {release.version}: not signed yet")
    if release.withdrawn_at is not None:
        raise ConflictError(f"release {release.model} {release.version}: was withdrawn")
