"""Devices: what is known of each, and what people may do to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import ColumnElement
from sqlmodel import Session, col, func, or_, select

from fleet.ids import DeviceId
from fleet.wire import codec, topics
from fleet.wire.messages import Flush
from server.db.engine import Database
from server.db.tables import Action, Device, DeviceModel, EventRow, Refusal
from server.errors import ConflictError, NotFoundError
from server.ports.broker import Publisher
from server.ports.clock import Clock
from server.services.devices.farewell import Farewell
from server.services.live import Live
from server.services.people.audit import Audit
from server.services.people.labels import checked_labels
from server.services.people.roles import Principal
from server.services.people.scoped_queries import labelled, of_devices
from server.services.people.scopes import Grant, Scope
from server.services.people.secrets import matches, new_secret


class DeviceFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which devices: all conditions hold at once, empty ones always.

    Attributes:
        text: part of the id.
        labels: each must be there with this value.
        running: digest of a bundle that runs on it.
    """

    text: str = ""
    target: str = ""
    online: bool | None = None
    labels: Mapping[str, str] = {}
    running: str = ""
    include_revoked: bool = False


class Devices:
    """Reads and changes devices."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        live: Live,
        publisher: Publisher,
        farewell: Farewell,
    ) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._live: Final = live
        self._publisher: Final = publisher
        self._farewell: Final = farewell

    def find(
        self,
        which: DeviceFilter,
        offset: int = 0,
        limit: int = 100,
        within: Sequence[Grant] | None = None,
    ) -> tuple[list[Device], int]:
        """Return a page of matching devices by id, and how many match in all.

        Args:
            which: what to look for.
            offset: where the page begins.
            limit: how many it has.
            within: only devices that one of these grants covers; None: all.
        """
        conditions: list[ColumnElement[bool]] = []
        if within is not None:
            conditions.append(of_devices(within))
        if not which.include_revoked:
            conditions.append(col(Device.revoked_at).is_(None))
        if which.text:
            conditions.append(col(Device.id).contains(which.text, autoescape=True))
        if which.target:
            conditions.append(col(Device.target) == which.target)
        if which.online is not None:
            conditions.append(col(Device.online) == which.online)
        if which.running:
            running = select(DeviceModel.device_id).where(DeviceModel.active == which.running)
            conditions.append(col(Device.id).in_(running))
        conditions += labelled(which.labels)
        with self._database.read() as session:
            total = session.exec(select(func.count()).select_from(Device).where(*conditions)).one()
            page = select(Device).where(*conditions).order_by(Device.id).offset(offset).limit(limit)
            return list(session.exec(page)), total

    def get(self, device_id: str) -> Device:
        """Return one device.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._database.read() as session:
            return _enrolled(session, device_id)

    def models(self, device_ids: Sequence[str]) -> dict[str, list[DeviceModel]]:
        """Return what runs, and shall run, on these devices."""
        query = (
            select(DeviceModel).where(col(DeviceModel.device_id).in_(device_ids)).order_by(DeviceModel.model)
        )
        found: dict[str, list[DeviceModel]] = {device_id: [] for device_id in device_ids}
        with self._database.read() as session:
            for row in session.exec(query):
                found[row.device_id].append(row)
        return found

    def events(self, device_id: str, offset: int = 0, limit: int = 100) -> list[EventRow]:
        """Return a device's update events, the newest first."""
        query = select(EventRow).where(EventRow.device_id == device_id)
        query = query.order_by(col(EventRow.received_at).desc(), col(EventRow.monotonic).desc())
        with self._database.read() as session:
            return list(session.exec(query.offset(offset).limit(limit)))

    def refusals(self, device_id: str = "", offset: int = 0, limit: int = 100) -> list[Refusal]:
        """Return what a device, or any device, refused, the newest first."""
        query = select(Refusal).where(or_(Refusal.device_id == device_id, not device_id))
        with self._database.read() as session:
            return list(
                session.exec(query.order_by(col(Refusal.received_at).desc()).offset(offset).limit(limit))
            )

    def actions(self, device_id: str, offset: int = 0, limit: int = 100) -> list[Action]:
        """Return a device's parts in rollouts, the newest first."""
        query = select(Action).where(Action.device_id == device_id).order_by(col(Action.id).desc())
        with self._database.read() as session:
            return list(session.exec(query.offset(offset).limit(limit)))

    def seen(self, reader: Principal, device_id: str) -> Device:
        """Return one device that the reader may see.

        Raises:
            NotFoundError: there is none of this id, or it is outside the reader's scopes.
        """
        device = self.get(device_id)
        _check_scope(reader, Scope.DEVICES_READ, device)
        return device

    def label(
        self,
        actor: Principal,
        device_id: str,
        labels: Mapping[str, str],
        *,
        seen: Mapping[str, str] | None = None,
    ) -> Device:
        """Replace a device's labels.

        Args:
            actor: who asks.
            device_id: the device.
            labels: all that it has from now on.
            seen: what it had when somebody began to change them; None: whatever it had.

        Raises:
            NotFoundError: there is no such device.
            InvalidError: a label has another form.
            ConflictError: it has others than were seen.
        """
        checked = checked_labels(labels)
        with self._database.write() as session:
            device = _enrolled(session, device_id)
            _check_scope(actor, Scope.DEVICES_WRITE, device)
            if seen is not None and dict(seen) != device.labels:
                raise ConflictError(f"device {device_id}: somebody else has changed its labels meanwhile")
            # A device is not taken out of what one may change, nor out of what others may.
            actor.check(Scope.DEVICES_WRITE, labels=checked)
            before, device.labels = device.labels, checked
            session.add(device)
            self._audit.record(
                session,
                actor,
                "device.label",
                f"device {device_id}",
                before={"labels": before},
                after={"labels": checked},
            )
        self._live.publish("device", {"id": device_id, "what": "labels"})
        return device

    def revoke(self, actor: Principal, device_id: str) -> None:
        """Shut a device out for good: its password ends, nothing it says counts, no rollout waits for it.

        Raises:
            NotFoundError: there is no such device.
        """
        with self._database.write() as session:
            device = _enrolled(session, device_id)
            self._farewell.revoke(session, actor, device)
        self._live.publish("device", {"id": device_id, "what": "revoked"})

    def decommission(self, actor: Principal, device_id: str, *, now: bool = False) -> None:
        """Tell a device to wipe itself, and shut it out once it has said that it does.

        Args:
            actor: who asks.
            device_id: the device.
            now: shut it out at once, whether it hears of it or not.

        Raises:
            NotFoundError: there is no such device.
            ConflictError: it is shut out already.
        """
        with self._database.write() as session:
            device = _enrolled(session, device_id)
            self._farewell.decommission(session, actor, device, now=now)
        self._live.publish("device", {"id": device_id, "what": "decommissioned"})

    def flush(self, actor: Principal, device_id: str) -> None:
        """Ask a device to send what waits, now.

        Raises:
            NotFoundError: there is no such device.
            BrokerError: the broker is not there.
        """
        _check_scope(actor, Scope.DEVICES_WRITE, self.get(device_id))
        message = codec.encode(Flush(id=new_secret(12)))
        self._publisher.publish(topics.command(DeviceId(device_id)), message, retain=False)
        with self._database.write() as session:
            self._audit.record(session, actor, "device.flush", f"device {device_id}")


def _enrolled(session: Session, device_id: str) -> Device:
    device = session.get(Device, device_id)
    if device is None:
        raise NotFoundError(f"device {device_id}: not enrolled here")
    return device


def _check_scope(actor: Principal, scope: Scope, device: Device) -> None:
    """Check that a device is within the actor's scopes; one that is not does not exist for them."""
    if not actor.covers(scope, labels=device.labels):
        raise NotFoundError(f"device {device.id}: not enrolled here")


def may_log_in(database: Database, device_id: str, password: str) -> bool:
    """Return whether this is the device's password on the embedded broker."""
    with database.read() as session:
        device = session.get(Device, device_id)
    return device is not None and device.revoked_at is None and matches(password, device.password_hash)
