"""People and tokens, as the console shows them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from server.db.tables import Token, User
from server.services.container import Services
from server.services.people.roles import Principal, Role
from server.services.people.tokens import grants_of


@dataclass(frozen=True, kw_only=True)
class Person:
    """One line of the list.

    Attributes:
        origin: host of the identity provider, "" for one with a password here.
        me: it is who looks, and nobody changes themselves.
    """

    row: User
    origin: str
    me: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One token.

    Attributes:
        may: its role, or its scopes, one per item.
        ended: "revoked", "expired" or "".
    """

    row: Token
    may: tuple[str, ...]
    ended: str


@dataclass(frozen=True, kw_only=True)
class PeoplePage:
    """What the page shows; `people` only to administrators."""

    people: tuple[Person, ...]
    tokens: tuple[Machine, ...]


def page(services: Services, reader: Principal) -> PeoplePage:
    """Return what the reader may see of people and tokens."""
    now = services.clock.now()
    everybody: tuple[Person, ...] = ()
    if reader.has(Role.ADMIN):
        origins = services.accounts.origins()
        everybody = tuple(
            Person(
                row=row,
                origin=urlsplit(origins.get(row.id or 0, "")).hostname or "",
                me=row.name == reader.owner,
            )
            for row in services.accounts.users()
        )
    tokens = tuple(_machine(row, now) for row in services.accounts.tokens.listed(reader))
    return PeoplePage(people=everybody, tokens=tokens)


def _machine(row: Token, now: float) -> Machine:
    expired = row.expires_at is not None and row.expires_at <= now
    return Machine(
        row=row,
        may=(row.role,) if row.role else tuple(str(grant) for grant in grants_of(row)),
        ended="revoked" if row.revoked_at else "expired" if expired else "",
    )
