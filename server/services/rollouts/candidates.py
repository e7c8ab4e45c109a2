"""Whom a rollout would reach: the devices that are asked for, and why some of them are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from sqlmodel import Session, col, select

from fleet.rollout.states import RolloutState
from server.db.tables import Action, Device, DeviceModel, Release, ReleaseBundle, Rollout
from server.services.people.scoped_queries import labelled

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


class Candidates(NamedTuple):
    """Whom a release may be brought to.

    Attributes:
        devices: those to bring it to, by id.
        bundles: the bundle for each of them, by the device's id.
        skipped: device to the reason why it is left out.
    """

    devices: list[Device]
    bundles: Mapping[str, str]
    skipped: dict[str, str]

    def why_none(self) -> str:
        """Return why nobody is left, to be put behind a message."""
        reasons = sorted(set(self.skipped.values()))
        return f": {'; '.join(reasons[:3])}" if reasons else ": none matches"


def candidates(session: Session, release: Release, selection: Selection) -> Candidates:
    """Return the devices that the selection names and the release may be brought to."""
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
    return Candidates(chosen, {device.id: bundles[device.target] for device in chosen}, skipped)


def _matching(session: Session, selection: Selection) -> list[Device]:
    query = select(Device).order_by(Device.id)
    if selection.devices:
        query = query.where(col(Device.id).in_(selection.devices))
    if selection.target:
        query = query.where(Device.target == selection.target)
    return list(session.exec(query.where(*labelled(selection.labels))))


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
