"""How a row of the table changes the data. Each function keeps the active bundle a proven one."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from device_agent.update.data import Failure, Offer, UpdateData
from device_agent.update.events import ActiveBroken, Done, Event, Failed, Offered, Restarted

SUPERSEDED: Final = "superseded"
ABORTED: Final = "aborted"
CRASH_LOOP: Final = "crash_loop"
ACTIVE_BROKEN: Final = "active_broken"
#: The bundle itself is not to blame: it may be offered again.
BLAMELESS: Final = frozenset({SUPERSEDED, ABORTED})


def _offer(event: Event) -> Offer:
    if not isinstance(event, Offered):
        raise TypeError(f"expected an offer, got {event!r}")
    return event.offer


def keep(data: UpdateData, _: Event) -> UpdateData:
    """Change nothing."""
    return data


def begin(data: UpdateData, event: Event) -> UpdateData:
    """Start to install what is offered."""
    offer = _offer(event)
    return replace(
        data,
        candidate=offer,
        pending=None,
        rollout=offer.rollout,
        crashes=0,
        reason="",
        detail="",
        measured={},
    )


def adopt(data: UpdateData, event: Event) -> UpdateData:
    """Belong to another rollout with the bundle that is active already."""
    offer = _offer(event)
    return replace(
        data,
        candidate=None,
        pending=None,
        rollout=offer.rollout,
        release_counter=_counter(data, offer),
        reason="",
        detail="already active",
        measured={},
    )


def measure(data: UpdateData, event: Event) -> UpdateData:
    """Remember what the step measured."""
    return replace(data, measured=event.measured if isinstance(event, Done) else {})


def commit(data: UpdateData, event: Event) -> UpdateData:
    """Make the candidate the active bundle, and keep what was active as the previous one."""
    if data.candidate is None:
        raise ValueError(f"{data.model}: nothing to commit")
    return replace(
        measure(data, event),
        active=data.candidate.bundle,
        previous=data.active or data.previous,
        release_counter=_counter(data, data.candidate),
        candidate=None,
        failed=None,
        crashes=0,
    )


def fail(data: UpdateData, event: Event) -> UpdateData:
    """Remember what went wrong."""
    if not isinstance(event, Failed):
        raise TypeError(f"expected a failure, got {event!r}")
    return replace(data, reason=event.reason, detail=event.detail, measured=event.measured)


def supersede(data: UpdateData, event: Event) -> UpdateData:
    """Give the candidate up for a newer one."""
    return replace(
        data, pending=_offer(event), reason=SUPERSEDED, detail="another bundle was assigned", measured={}
    )


def abort(data: UpdateData, event: Event) -> UpdateData:
    """Give the candidate up: the active bundle is to stay."""
    return replace(
        data,
        pending=_offer(event),
        reason=ABORTED,
        detail="the active bundle was assigned again",
        measured={},
    )


def queue(data: UpdateData, event: Event) -> UpdateData:
    """Keep the offer until rolling back is done."""
    return replace(data, pending=_offer(event))


def renew(data: UpdateData, event: Event) -> UpdateData:
    """Take the newer terms of the same offer."""
    return replace(data, candidate=_offer(event))


def count_crash(data: UpdateData, event: Event) -> UpdateData:
    """Count a start that found the candidate in use, unless the agent had been asked to stop."""
    clean = isinstance(event, Restarted) and event.clean
    return replace(data, crashes=data.crashes + (0 if clean else 1), measured={})


def crash(data: UpdateData, _: Event) -> UpdateData:
    """Blame the candidate for the crashes."""
    return replace(
        data,
        crashes=data.crashes + 1,
        reason=CRASH_LOOP,
        detail=f"the agent crashed {data.crashes + 1} times before the commit",
        measured={},
    )


def lose_active(data: UpdateData, _: Event) -> UpdateData:
    """Go on with the previous bundle as the active one."""
    return replace(data, active=data.previous, previous=None)


def fall_back(data: UpdateData, event: Event) -> UpdateData:
    """Return to the previous bundle, because the active one is damaged; it may be offered again."""
    detail = event.detail if isinstance(event, ActiveBroken) else ""
    return replace(lose_active(data, event), candidate=None, reason=ACTIVE_BROKEN, detail=detail, measured={})


def give_up(data: UpdateData, _: Event) -> UpdateData:
    """Finish rolling back; remember the candidate unless it is not to blame."""
    if data.candidate is None:
        return data
    blamed = Failure(digest=data.candidate.bundle.digest, rollout=data.candidate.rollout)
    return replace(data, failed=data.failed if data.reason in BLAMELESS else blamed)


def _counter(data: UpdateData, offer: Offer) -> int:
    offered = offer.bundle.release_counter
    return offered if offer.allow_rollback else max(data.release_counter, offered)
