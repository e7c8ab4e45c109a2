"""Clocks that lie: what time a device may believe.

A device's clock may stand at 1970 after a power cut, or at 2100 after a mistake. What it may believe is
bounded from below by times that somebody trusted has signed: our repository's TUF files carry, beside their
expiry, the time at which they were signed. The highest one seen is the *time floor*.

A signer's clock that is fast raises every floor to where it stands, so a server does not sign when its clock
cannot be believed (`unlikely`): before what it has signed already, or after the root that names it has ended.

A clock that is fast cannot be told from the truth: everything looks expired, so nothing new is installed, and
what runs goes on running, for being offline or late never stops a running model. What may be done then says
`fleet.trust.assignment.Assignment`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
from tuf.api.metadata import Signed

from fleet.errors import TrustError

#: A time that says its zone.
Time: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]

#: The signed field of ours, in assignments and in the metadata of the image repository.
FIELD: Final = "x-kedge"
#: No server has ever run before: a machine without a battery for its clock starts in 1970.
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)
#: A clock may be this far behind the signer's before it is called wrong.
TOLERANCE: Final = timedelta(minutes=5)


class _Signing(msgspec.Struct, frozen=True, omit_defaults=True):
    """The field `x-kedge` of the image repository's metadata."""

    signed_at: Time
    kit: bool = False


class Clock(NamedTuple):
    """The time to hold expiries against, and whether the device's own clock cannot be believed."""

    now: datetime
    untrusted: bool


def clock(wall: datetime, floor: datetime | None) -> Clock:
    """Return the time that the device may believe.

    Args:
        wall: what its clock says.
        floor: the latest time that it has seen signed, None when none.

    Returns:
        Never a time before the floor: a clock set back does not revive metadata that has expired.
    """
    if floor is None or wall >= floor:
        return Clock(wall, untrusted=False)
    return Clock(floor, untrusted=floor - wall > TOLERANCE)


def unlikely(now: datetime, *, since: datetime | None = None, until: datetime | None = None) -> str:
    """Return why a signer's clock cannot be believed, in words; "" when it can.

    A server that was switched off for months finds its clock months ahead of what it signed last, and goes on
    by itself as long as its root holds. After that only a person can tell a fast clock from a long sleep.

    Args:
        now: what its clock says.
        since: when the latest was signed that devices take the time from.
        until: when root ends.
    """
    stands = f"the server's clock stands at {now:%Y-%m-%dT%H:%M:%SZ}"
    if now < EARLIEST:
        return f"{stands}, before there was a Kedge"
    if since is not None and now < since - TOLERANCE:
        return f"{stands}, and it has signed at {since:%Y-%m-%dT%H:%M:%SZ} already"
    if until is not None and now >= until:
        return f"{stands}, after root has ended ({until:%Y-%m-%dT%H:%M:%SZ})"
    return ""


def stamp(now: datetime, *, kit: bool = False) -> dict[str, Any]:
    """Return the field that says when a metadata file was signed, and whether for offline kits."""
    return {FIELD: msgspec.to_builtins(_Signing(signed_at=now, kit=kit))}


def is_for_kits(signed: Signed) -> bool:
    """Return whether a timestamp was signed for offline kits: it holds longer, and counts only in one."""
    try:
        return msgspec.convert(signed.unrecognized_fields.get(FIELD), _Signing).kit
    except msgspec.ValidationError:
        return False


def signed_at(signed: Signed) -> datetime | None:
    """Return when a metadata file was signed, as its signer says, or None when it does not say."""
    try:
        return msgspec.convert(signed.unrecognized_fields.get(FIELD), _Signing).signed_at
    except msgspec.ValidationError:
        return None


def check_made(signed: Signed, now: datetime) -> None:
    """Check that a file that people have signed says no later time than it is, for devices believe it.

    Raises:
        TrustError: it does: every device's time floor would be there, with all that ends before expired.
    """
    made = signed_at(signed)
    if made is not None and made > now + TOLERANCE:
        raise TrustError(
            f"{signed.type}: version {signed.version} says that it was made {made:%Y-%m-%dT%H:%M:%SZ}, and "
            f"it is {now:%Y-%m-%dT%H:%M:%SZ}: devices would believe it; is a clock wrong? propose it again",
            reason="malformed",
        )


def latest(times: Iterable[datetime | None]) -> datetime | None:
    """Return the latest of the times that are known, None when none is."""
    return max((time for time in times if time is not None), default=None)


def encode_floor(floor: datetime) -> bytes:
    """Return the time floor as a device keeps it."""
    return msgspec.json.encode(floor)


def decode_floor(data: bytes | None) -> datetime | None:
    """Return the time floor that a device has kept; one that cannot be read is none."""
    try:
        return msgspec.json.decode(data, type=Time) if data is not None else None
    except ValueError:
        return None
