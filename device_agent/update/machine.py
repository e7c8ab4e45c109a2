"""One step of the machine: an event is read against the data, and the table says the rest."""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec.structs import replace

from device_agent.update.data import Offer, UpdateData
from device_agent.update.effects import BLAMELESS
from device_agent.update.events import Action, ActiveBroken, Done, Event, Failed, Offered, Restarted
from device_agent.update.table import ACTIONS, BUSY, RUNNING, TABLE, Trigger
from fleet.wire.messages import UpdateState

#: As many crashes with an uncommitted candidate, and it is rolled back.
MAX_CRASHES: Final = 3

#: The way back has to be tried again when the bundle that it leads to is broken too.
_WITHOUT_ACTIVE: Final = (UpdateState.ROLLING_BACK, Trigger.ACTIVE_BROKEN)
_PLAIN: Final[dict[type, Trigger]] = {
    Done: Trigger.DONE,
    Failed: Trigger.FAILED,
    ActiveBroken: Trigger.ACTIVE_BROKEN,
}


class Step(NamedTuple):
    """What a step comes to.

    Attributes:
        data: to be journaled before anything else is done.
        action: what to do then, None when what is under way goes on.
        entered: whether a state was entered, which is reported.
    """

    data: UpdateData
    action: Action | None
    entered: bool


def step(data: UpdateData, event: Event) -> Step:
    """Return what an event leads to."""
    trigger = meaning(data, event)
    row = TABLE.get((data.state, trigger))
    if row is None:
        return Step(data, None, entered=False)
    changed = row.effect(data, event)
    if row.target is None:
        again = trigger is Trigger.RESTARTED or (data.state, trigger) == _WITHOUT_ACTIVE
        action = ACTIONS.get(data.state) if again else None
        return Step(changed, action, entered=False)
    changed = replace(changed, state=row.target, serial=data.serial + 1)
    return Step(changed, ACTIONS.get(row.target), entered=True)


def meaning(data: UpdateData, event: Event) -> Trigger:
    """Return what an event means for the model as it stands."""
    if isinstance(event, Offered):
        return _meaning_of_offer(data, event.offer)
    if isinstance(event, Restarted):
        last = not event.clean and data.state in RUNNING and data.crashes + 1 >= MAX_CRASHES
        return Trigger.CRASH_LOOP if last else Trigger.RESTARTED
    return _PLAIN[type(event)]


def _meaning_of_offer(data: UpdateData, offer: Offer) -> Trigger:
    digest = offer.bundle.digest
    if data.state in BUSY and data.candidate is not None:
        if (digest, offer.rollout) == (data.candidate.bundle.digest, data.candidate.rollout):
            return Trigger.SAME_OFFER
    elif data.state is UpdateState.ROLLING_BACK:
        if _to_blame(data, offer):
            return Trigger.SAME_OFFER
    elif data.failed is not None and (digest, offer.rollout) == (data.failed.digest, data.failed.rollout):
        return Trigger.SAME_OFFER
    if data.active is not None and digest == data.active.digest:
        settled = not data.installing and data.rollout == offer.rollout
        return Trigger.SAME_OFFER if settled else Trigger.ACTIVE_OFFER
    return Trigger.NEW_OFFER


def _to_blame(data: UpdateData, offer: Offer) -> bool:
    """Return whether the offer is of the candidate that is being rolled back for its own fault."""
    if data.candidate is None or data.reason in BLAMELESS:
        return False
    return (offer.bundle.digest, offer.rollout) == (data.candidate.bundle.digest, data.candidate.rollout)
