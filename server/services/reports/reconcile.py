"""Keeps the server's picture of a device true: from what it says when it connects, and from each step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Final

from sqlmodel import Session, col, select

from fleet.errors import TrustError
from fleet.rollout.states import ActionStatus
from fleet.wire.messages import Hello, ModelSlot, SignedStatement, Status, UpdateEvent, UpdateState
from server.db.tables import Action, Device, DeviceAssignment, DeviceModel, EventRow
from server.errors import ClockError
from server.ports.clock import Clock
from server.services.devices.farewell import Farewell
from server.services.director.assignments import Assignments
from server.services.identity.statements import Statements
from server.services.reports.message_checks import MOST_SLOTS
from server.services.rollouts.rows import open_actions
from server.services.rollouts.steps import RolloutSteps
from server.services.trust.signing import SigningService

LOG: Final = logging.getLogger("kedge.reconcile")


def finite(measured: Mapping[str, float]) -> dict[str, float]:
    """Return what was measured but what is no number: a broken model's error may be, and JSON has none."""
    return {name: value for name, value in measured.items() if math.isfinite(value)}


class Reconcile:
    """Applies hellos, status and update events to devices and their parts in rollouts."""

    def __init__(
        self,
        clock: Clock,
        signing: SigningService,
        assignments: Assignments,
        steps: RolloutSteps,
        farewell: Farewell,
    ) -> None:
        """Keep what is needed."""
        self._clock: Final = clock
        self._signing: Final = signing
        self._assignments: Final = assignments
        self._steps: Final = steps
        self._farewell: Final = farewell
        self._statements: Final = Statements(clock)

    def hello(self, session: Session, device: Device, hello: Hello) -> None:
        """Take over what a device says of itself, and have its assignment sent again if it lags behind."""
        now = self._clock.now()
        device.online, device.last_seen_at, device.hello_at = True, now, now
        device.boot_id, device.agent_version = hello.boot_id, hello.agent_version[:64]
        device.firmware, device.gates = dict(hello.firmware), list(hello.gates)
        device.assignment_version = hello.assignment_version
        device.clock_untrusted, device.outbox_bytes = hello.clock_untrusted, hello.outbox_bytes
        session.add(device)
        for slot in hello.slots:
            self._slot(session, device.id, slot)
        newest = session.get(DeviceAssignment, device.id)
        if newest is None:
            return
        self._assignments.seen(session, newest)
        if newest.published and newest.version > hello.assignment_version:
            self._assignments.publish_again(session, device.id)

    def _slot(self, session: Session, device_id: str, slot: ModelSlot) -> None:
        row = self._model(session, device_id, slot.model)
        row.active, row.active_version = slot.active, slot.active_version
        row.previous, row.release_counter = slot.previous, slot.release_counter
        row.state, row.rollout = slot.state.value, slot.rollout
        session.add(row)
        for action in open_actions(session, device_id, slot.model):
            self._steps.follow_hello(session, action, slot.active)

    def status(self, session: Session, device: Device, status: Status) -> None:
        """Note whether a device is connected; a last will of an earlier start says nothing."""
        if not status.online and device.boot_id and status.boot_id != device.boot_id:
            return
        device.online = status.online
        if status.online:
            device.last_seen_at = self._clock.now()
        session.add(device)

    def statement(self, session: Session, device: Device, signed: SignedStatement) -> None:
        """Keep what a device has signed about itself; go beyond it where it holds newer than we ever made.

        Raises:
            TrustError: it has not signed it; that is counted on the device's row all the same.
        """
        device.last_seen_at = self._clock.now()
        session.add(device)
        told = self._statements.take(session, device, signed)
        if told is not None and self._assignments.outrun(session, device.id, told.assignment_version):
            LOG.warning("%s holds an assignment that this server never made: it was restored?", device.id)
        if told is not None and told.held_timestamp:
            self._outrun(device.id, told.held_timestamp)

    def _outrun(self, device_id: str, held: bytes) -> None:
        try:
            if self._signing.outrun(held):
                LOG.warning("%s holds newer metadata than this server: it was restored?", device_id)
        except (TrustError, ClockError) as error:
            LOG.warning("%s holds a timestamp that is not to be followed: %s", device_id, error)

    def decommissioned(self, session: Session, device: Device) -> None:
        """Shut out a device that says that it wipes itself, if it was told to."""
        self._farewell.decommissioned(session, device)

    def step(self, session: Session, device: Device, event: UpdateEvent) -> None:
        """Follow one step of an update that is new here; stragglers change nothing that is decided."""
        device.last_seen_at = self._clock.now()
        session.add(device)
        if not self._overtaken(session, device, event):
            row = self._model(session, device.id, event.model)
            row.state, row.rollout = event.state.value, event.rollout
            if event.state is UpdateState.COMMITTED and row.active != event.bundle:
                row.previous, row.active = row.active, event.bundle
            session.add(row)
        action = self._action(session, device.id, event)
        if action is not None:
            self._steps.follow_step(
                session, action, event.state, event.reason[:64], event.detail[:2000], finite(event.measured)
            )

    @staticmethod
    def _overtaken(session: Session, device: Device, event: UpdateEvent) -> bool:
        """Return whether a later step is known: what was lost and sent again comes out of order."""
        later = select(EventRow.id).where(
            EventRow.device_id == device.id,
            EventRow.model == event.model,
            EventRow.boot_id == event.boot_id,
            EventRow.monotonic > event.monotonic,
        )
        return session.exec(later.limit(1)).first() is not None

    @staticmethod
    def _action(session: Session, device_id: str, event: UpdateEvent) -> Action | None:
        if not event.rollout.isascii() or not event.rollout.isdecimal() or len(event.rollout) > 9:  # noqa: PLR2004 - an id of ours has at most nine digits
            return None
        query = select(Action).where(Action.device_id == device_id, Action.rollout_id == int(event.rollout))
        action = session.exec(query).first()
        if action is None or event.bundle not in (action.bundle, action.before):
            return None
        # Coming back is a step of the bundle from before; only then does it belong to this rollout.
        going_back = action.status in (ActionStatus.REVERTING, ActionStatus.REVERTED)
        return (
            action
            if (event.bundle == action.before) == going_back or action.before == action.bundle
            else None
        )

    @staticmethod
    def _make_room(session: Session, device_id: str) -> None:
        """Forget the models that a device has not named for longest, where it has named too many."""
        mine = select(DeviceModel).where(DeviceModel.device_id == device_id)
        for row in session.exec(mine.order_by(col(DeviceModel.updated_at).desc()).offset(MOST_SLOTS - 1)):
            session.delete(row)

    def _model(self, session: Session, device_id: str, model: str) -> DeviceModel:
        row = session.get(DeviceModel, (device_id, model))
        if row is None:
            self._make_room(session, device_id)
            row = DeviceModel(device_id=device_id, model=model, updated_at=0.0)
        row.updated_at = self._clock.now()
        return row
