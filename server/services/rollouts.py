"""Rollouts: people create, approve, pause, promote, abort and roll back; the tick does the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from sqlmodel import Session, col, func, select

from fleet.rollout import plan
from fleet.rollout.decision import Decision, Verdict, count, decide, expired, late
from fleet.rollout.plan import Policy
from fleet.rollout.states import ACTIVE, ActionStatus, GroupState, Move, RolloutState, TransitionError
from server.db.engine import Database
from server.db.tables import (
    Action,
    BundleRow,
    Device,
    DeviceModel,
    Release,
    ReleaseBundle,
    Rollout,
    RolloutGroup,
)
from server.errors import ConflictError, InvalidError, NotFoundError
from server.ports.clock import Clock
from server.services.audit import Audit
from server.services.labels import checked_labels
from server.services.live import Live
from server.services.roles import SYSTEM, Principal
from server.services.rollout_steps import RolloutSteps, policy_of, progress_of
from server.services.scoped_queries import of_models
from server.services.scopes import Grant, Scope

LOG: Final = logging.getLogger("kedge.rollouts")
_UNDECIDED: Final = [
    state.value
    for state in (
        RolloutState.WAITING_FOR_APPROVAL,
        RolloutState.RUNNING,
        RolloutState.PAUSED,
        RolloutState.ROLLING_BACK,
    )
]


class Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices a rollout is for: all conditions hold at once, empty ones always.

    Attributes:
        devices: ids.
        labels: each must be there with this value.
    """

    devices: tuple[str, ...] = ()
    target: str = ""
    labels: dict[str, str] = {}


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
    """Creates, steers and moves rollouts on."""

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
            release = _release(session, release_id)
            reader.check(Scope.ROLLOUTS_WRITE, model=release.model, labels=selection.labels)
            bundles, devices, skipped = _candidates(session, release, selection)
            sizes = {x.digest: x.device_bytes for x in session.exec(select(BundleRow))}
        groups = plan.assign(plan.order((d.id for d in devices), ""), policy.groups)
        return Preview(
            devices=tuple(sorted(device.id for device in devices)),
            skipped=skipped,
            offline=sum(not device.online for device in devices),
            group_sizes=tuple(len(group) for group in groups),
            bytes=sum(sizes.get(bundles[device.target], 0) for device in devices),
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
            ConflictError: the release is not signed yet.
            InvalidError: no device is left to bring the release to, or a label is none.
            PlanError: the policy makes no sense.
        """
        policy.check()
        checked_labels(selection.labels)
        with self._database.write() as session:
            release = _release(session, release_id)
            actor.check(Scope.ROLLOUTS_WRITE, model=release.model, labels=selection.labels)
            if release.signed_at is None:
                raise ConflictError(f"release {release.model} {release.version}: not signed yet")
            if release.withdrawn_at is not None:
                raise ConflictError(f"release {release.model} {release.version}: was withdrawn")
            bundles, devices, skipped = _candidates(session, release, selection)
            if not devices:
                raise InvalidError(f"rollout: no device to bring the release to{_why(skipped)}")
            rollout = self._insert(session, actor, release, name, selection, policy)
            targets = {device.id: device.target for device in devices}
            groups = plan.assign(plan.order(targets, str(rollout.id)), policy.groups)
            self._insert_groups(session, rollout, groups, {d: bundles[t] for d, t in targets.items()})
            after = {"release": release_id, "devices": len(devices), "policy": rollout.policy}
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
            rollout = _rollout(session, rollout_id)
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

    # --- the tick ------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Look at every rollout that is under way, and move on those that can; return how many moved."""
        with self._database.read() as session:
            states = [state.value for state in ACTIVE]
            ids = list(session.exec(select(Rollout.id).where(col(Rollout.state).in_(states))))
        return sum(self._tick_one(rollout_id or 0) for rollout_id in ids)

    def _tick_one(self, rollout_id: int) -> bool:
        with self._database.read() as session:
            if not self._step(session, _rollout(session, rollout_id), dry=True):
                return False
        # Something is to be done: look again, now holding the database, for it may have changed meanwhile.
        with self._database.write() as session:
            return self._step(session, _rollout(session, rollout_id), dry=False)

    def _step(self, session: Session, rollout: Rollout, *, dry: bool) -> bool:
        now, policy = self._clock.now(), policy_of(rollout)
        actions = self._steps.actions(session, rollout)
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

    # --- reading -------------------------------------------------------------------------------------

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
            return _rollout(session, rollout_id)

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


def _release(session: Session, release_id: int) -> Release:
    release = session.get(Release, release_id)
    if release is None:
        raise NotFoundError(f"release {release_id}: expected an existing one")
    return release


def _rollout(session: Session, rollout_id: int) -> Rollout:
    rollout = session.get(Rollout, rollout_id)
    if rollout is None:
        raise NotFoundError(f"rollout {rollout_id}: expected an existing one")
    return rollout


def _candidates(
    session: Session, release: Release, selection: Selection
) -> tuple[dict[str, str], list[Device], dict[str, str]]:
    """Return the release's bundles by target, the devices to bring them to, and why others are left out."""
    stored = session.exec(select(ReleaseBundle).where(ReleaseBundle.release_id == release.id))
    bundles = {x.target: x.bundle_digest for x in stored}
    busy = dict(
        session.exec(
            select(Action.device_id, Rollout.id)
            .join(Rollout, col(Rollout.id) == Action.rollout_id)
            .where(Rollout.model == release.model, col(Rollout.state).in_(_UNDECIDED))
        ).all()
    )
    running = dict(
        session.exec(
            select(DeviceModel.device_id, DeviceModel.active).where(DeviceModel.model == release.model)
        ).all()
    )
    chosen: list[Device] = []
    skipped = dict.fromkeys(selection.devices, "not enrolled here")
    for device in _matching(session, selection):
        skipped.pop(device.id, None)
        reason = _reason_against(device, bundles, busy, running)
        if reason:
            skipped[device.id] = reason
        else:
            chosen.append(device)
    return bundles, chosen, skipped


def _matching(session: Session, selection: Selection) -> list[Device]:
    query = select(Device).order_by(Device.id)
    if selection.devices:
        query = query.where(col(Device.id).in_(selection.devices))
    if selection.target:
        query = query.where(Device.target == selection.target)
    for key, value in selection.labels.items():
        query = query.where(col(Device.labels)[key].as_string() == value)
    return list(session.exec(query))


def _reason_against(
    device: Device, bundles: Mapping[str, str], busy: Mapping[str, int | None], running: Mapping[str, str]
) -> str:
    if device.revoked_at is not None:
        return "revoked"
    if device.decommission_at is not None:
        return "decommissioned"
    if device.target not in bundles:
        return f"the release has no bundle for {device.target}"
    if device.id in busy:
        return f"takes part in rollout {busy[device.id]}"
    if running.get(device.id) == bundles[device.target]:
        return "runs it already"
    return ""


def _why(skipped: Mapping[str, str]) -> str:
    reasons = sorted(set(skipped.values()))
    return f": {'; '.join(reasons[:3])}" if reasons else ": none matches"
