"""How far the fleet is on its way from one authority to the next, and whom the next step would shut out.

A device learns of an authority, and gets a certificate of the one that signs, when it renews. So what it was
given last says what it knows: whether it would believe a broker that the next authority has certified, and
whether that broker would believe it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final

import msgspec
from sqlalchemy import ColumnElement
from sqlmodel import Session, col, func, select

from server.db.engine import Database
from server.db.identity_tables import IssuedCertificate
from server.db.tables import Device
from server.services.identity.authority_folder import CURRENT, NEXT, OLD, Member

ADD: Final = "add"
SWITCH: Final = "switch"
DROP: Final = "drop"
#: So long before an authority ends, people are told to let another follow it.
WARN: Final = 360 * 86400.0
_SHOWN: Final = 20


class AuthorityLine(msgspec.Struct, frozen=True, kw_only=True):
    """One authority.

    Attributes:
        name: `ca` signs, `ca-next` will, `ca-old` did.
        until: when it ends.
        devices: how many have a certificate that it has signed as their present one.
        known: how many were told to trust it.
    """

    name: str
    key_id: str
    until: float
    devices: int
    known: int


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """A device that the next step would shut out.

    Attributes:
        last_seen_at: when it last said something; None: never.
        not_after: when its present certificate ends.
    """

    device_id: str
    last_seen_at: float | None
    not_after: float


class Succession(msgspec.Struct, frozen=True, kw_only=True):
    """Where the fleet stands.

    Attributes:
        step: the next one: `add`, `switch` or `drop`.
        devices: how many there are, revoked ones left out.
        behind: how many of them that step would shut out, until they have renewed over HTTP.
        who: the first of those, who was seen last first.
    """

    authorities: tuple[AuthorityLine, ...]
    step: str
    devices: int
    behind: int
    who: tuple[Behind, ...]


def look(session: Session, members: Sequence[Member], limit: int = _SHOWN) -> Succession:
    """Return where the fleet stands.

    Args:
        session: the database.
        members: the authorities that are trusted now, the one that signs first.
        limit: how many of the devices that are behind to name.
    """
    named = {x.name: x for x in members}
    counted = _counted(session)
    step = SWITCH if NEXT in named else DROP if OLD in named else ADD
    late = _late(step, named)
    return Succession(
        authorities=tuple(_line(x, counted) for x in members),
        step=step,
        devices=sum(counted.values()),
        behind=0 if late is None else _count(session, late),
        who=() if late is None else _who(session, late, limit),
    )


class Authorities:
    """Looks for a running server."""

    def __init__(self, database: Database, members: Sequence[Member]) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._members: Final = tuple(members)

    def look(self, limit: int = _SHOWN) -> Succession:
        """Return where the fleet stands."""
        with self._database.read() as session:
            return look(session, self._members, limit)


def says(found: Succession) -> str:
    """Return in one line who is behind, "" when nothing is under way."""
    if found.step == ADD:
        return ""
    what = "know the next authority" if found.step == SWITCH else "have a certificate of the new authority"
    done = found.devices - found.behind
    return f"{done} of {found.devices} device{'s' if found.devices != 1 else ''} {what}"


def ending(found: Succession, now: float) -> str:
    """Return that the authority which signs ends soon, "" when it does not, or another is to follow it."""
    signs = next(x for x in found.authorities if x.name == CURRENT)
    if found.step != ADD or signs.until - now >= WARN:
        return ""
    return f"the fleet's authority ends {datetime.fromtimestamp(signs.until, timezone.utc):%Y-%m-%d}"


_Counted = dict[tuple[str, str], int]
_PRESENT: Final = (col(IssuedCertificate.replaced_at).is_(None), col(Device.revoked_at).is_(None))


def _counted(session: Session) -> _Counted:
    """Return how many devices have a certificate of which authority, told of which others."""
    query = select(IssuedCertificate.issuer, IssuedCertificate.told, func.count())
    query = query.join(Device, col(Device.id) == IssuedCertificate.device_id).where(*_PRESENT)
    rows = session.exec(query.group_by(IssuedCertificate.issuer, IssuedCertificate.told))
    return {(issuer, told): count for issuer, told, count in rows}


def _line(member: Member, counted: _Counted) -> AuthorityLine:
    return AuthorityLine(
        name=member.name,
        key_id=member.key_id,
        until=member.until,
        devices=sum(count for (issuer, _), count in counted.items() if issuer == member.key_id),
        known=sum(count for (_, told), count in counted.items() if member.key_id in told.split()),
    )


def _late(step: str, named: dict[str, Member]) -> ColumnElement[bool] | None:
    if step == SWITCH:
        return col(IssuedCertificate.told).not_like(f"%{named[NEXT].key_id}%")
    if step == DROP:
        return col(IssuedCertificate.issuer) != named[CURRENT].key_id
    return None


def _count(session: Session, late: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(IssuedCertificate)
    query = query.join(Device, col(Device.id) == IssuedCertificate.device_id)
    return int(session.exec(query.where(*_PRESENT, late)).one())


def _who(session: Session, late: ColumnElement[bool], limit: int) -> tuple[Behind, ...]:
    seen = col(Device.last_seen_at)
    query = select(Device.id, Device.last_seen_at, IssuedCertificate.not_after)
    query = query.join(IssuedCertificate, col(IssuedCertificate.device_id) == Device.id)
    query = query.where(*_PRESENT, late).order_by(seen.is_(None), seen.desc(), Device.id).limit(limit)
    return tuple(
        Behind(device_id=device, last_seen_at=last, not_after=ends)
        for device, last, ends in session.exec(query)
    )
