"""Tokens of machines and command lines: made, found by their secret, and ended.

A token never does more than the person who answers for it: their role limits it at each use, it is of no use
while they are locked out, and one made with another token ends with that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec
from sqlmodel import Session, col, select

from fleet.errors import WireError
from fleet.ids import Name
from server.db.engine import Database
from server.db.tables import Token, User
from server.errors import ForbiddenError, InvalidError, NotFoundError
from server.ports.clock import Clock
from server.services.people.audit import Audit
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Grant, check_grants
from server.services.people.secrets import hashed, new_secret

#: How long a token holds unless it is said otherwise.
TOKEN_SECONDS: Final = 90 * 24 * 3600.0
#: Seconds, None for never, or unset for the usual time.
Lifetime: TypeAlias = "float | msgspec.UnsetType | None"
#: What is to hold longer is to say so: it never expires.
LONGEST: Final = 10 * 366 * 24 * 3600.0
#: A token's last use is written down this often at most: reading must not become writing.
_USE_SECONDS: Final = 60.0


class Tokens:
    """Makes, lists, recognizes and revokes tokens."""

    def __init__(self, database: Database, clock: Clock, audit: Audit) -> None:
        """Keep what is needed."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit

    def principal(self, secret: str) -> Principal | None:
        """Return whose bearer token the secret is, with what it may do now, or None."""
        now = self._clock.now()
        query = select(Token, User).join(User, col(Token.owner_id) == col(User.id), isouter=True)
        with self._database.read() as session:
            found: tuple[Token, User | None] | None = session.exec(
                query.where(Token.secret_hash == hashed(secret))
            ).first()
        if found is None:
            return None
        token, owner = found
        over = token.expires_at is not None and token.expires_at <= now
        if over or token.revoked_at is not None or (owner is not None and owner.disabled):
            return None
        self._used(token, now)
        return _principal(token, owner)

    def _used(self, token: Token, now: float) -> None:
        if (token.last_used_at or 0.0) >= now - _USE_SECONDS:
            return
        with self._database.write() as session:
            row = session.get_one(Token, token.id)
            row.last_used_at = now
            session.add(row)

    def listed(self, reader: Principal) -> list[Token]:
        """Return the tokens that the reader answers for, an administrator's all; the newest first."""
        with self._database.read() as session:
            query = select(Token).order_by(col(Token.id).desc())
            if not reader.has(Role.ADMIN):
                # Of nobody's, the one that asks: to compare with no owner would find all that have none.
                mine = _owner_id(session, reader)
                query = query.where(
                    col(Token.id) == reader.token_id if mine is None else col(Token.owner_id) == mine
                )
            return list(session.exec(query))

    def add(
        self,
        actor: Principal,
        name: str,
        role: Role | None = None,
        *,
        grants: Iterable[Grant] = (),
        expires_in: Lifetime = msgspec.UNSET,
    ) -> tuple[Token, str]:
        """Make a token and return it with its secret, which is shown once.

        Args:
            actor: who makes it, and who it can never do more than.
            name: for people.
            role: what it may do, or None for one with scopes.
            grants: its scopes, where it has no role.
            expires_in: seconds; None for never; unset: 90 days, or as long as the token that it is made with.

        Raises:
            InvalidError: a bad name, time or scope, or not exactly one of role and scopes.
            ForbiddenError: it could do more, or hold longer, than its maker.
        """
        secret = new_secret()
        with self._database.write() as session:
            return self.insert(session, actor, name, secret, role, check_grants(grants), expires_in), secret

    def insert(
        self,
        session: Session,
        actor: Principal,
        name: str,
        secret: str,
        role: Role | None,
        grants: tuple[Grant, ...] = (),
        expires_in: Lifetime = msgspec.UNSET,
    ) -> Token:
        """Make a token of a given secret, in a transaction; see `add`."""
        _check(name, role, grants, expires_in)
        _check_maker(actor, role, grants)
        parent = session.get(Token, actor.token_id) if actor.token_id is not None else None
        if parent is not None and parent.revoked_at is not None:
            raise ForbiddenError(f"{actor.name}: was revoked just now")
        now = self._clock.now()
        token = Token(
            name=name,
            secret_hash=hashed(secret),
            role="" if role is None else role.value,
            scopes=[msgspec.to_builtins(grant) for grant in grants],
            owner_id=_owner_id(session, actor),
            parent_id=actor.token_id,
            created_by=actor.name,
            created_at=now,
            expires_at=_until(actor, now, expires_in),
        )
        session.add(token)
        session.flush()
        after: dict[str, object] = {"name": name, "expires_at": token.expires_at}
        after |= {"role": token.role} if role is not None else {"scopes": [str(grant) for grant in grants]}
        self._audit.record(session, actor, "token.add", f"token {token.id}", after=after)
        return token

    def revoke(self, actor: Principal, token_id: int) -> None:
        """Make a token worthless, and every token that was made with it.

        Raises:
            NotFoundError: there is none of this id that the actor answers for.
        """
        with self._database.write() as session:
            token = session.get(Token, token_id)
            mine = _owner_id(session, actor)
            if token is None or not (actor.has(Role.ADMIN) or (mine and token.owner_id == mine)):
                raise NotFoundError(f"token {token_id}: expected an existing one")
            ended = self._end(session, [token])
            after = {"name": token.name, "with": ended[1:]} if ended[1:] else {"name": token.name}
            self._audit.record(session, actor, "token.revoke", f"token {token_id}", after=after)

    def end_of(self, session: Session, owner_id: int) -> list[int]:
        """Revoke every token that a person answers for, in a transaction; return their ids."""
        query = select(Token).where(Token.owner_id == owner_id, col(Token.revoked_at).is_(None))
        return self._end(session, list(session.exec(query)))

    def _end(self, session: Session, tokens: list[Token]) -> list[int]:
        """Revoke these and all made with them; return their ids."""
        ended: list[int] = []
        while tokens:
            for token in tokens:
                token.revoked_at = token.revoked_at or self._clock.now()
                session.add(token)
            ids = [token.id or 0 for token in tokens]
            ended += ids
            tokens = list(session.exec(select(Token).where(col(Token.parent_id).in_(ids))))
        return ended


def grants_of(token: Token) -> tuple[Grant, ...]:
    """Return a token's scopes."""
    return msgspec.convert(token.scopes, tuple[Grant, ...])


def _principal(token: Token, owner: User | None) -> Principal:
    limit = Role(owner.role) if owner is not None else Role.ADMIN
    role = min(Role(token.role), limit, key=lambda x: x.rank) if token.role else None
    return Principal(
        name=f"token:{token.name}",
        role=role,
        owner="" if owner is None else owner.name,
        grants=tuple(grant for grant in grants_of(token) if limit.gives(grant.scope)),
        token_id=token.id,
        expires_at=token.expires_at,
    )


def _check(name: str, role: Role | None, grants: tuple[Grant, ...], expires_in: Lifetime) -> None:
    try:
        Name(name)
    except WireError as error:
        raise InvalidError(str(error)) from error
    if (role is None) == (not grants):
        raise InvalidError("token: expected either a role or scopes")
    if isinstance(expires_in, (int, float)) and not 0 < expires_in <= LONGEST:
        raise InvalidError(f"expires_in: expected up to {LONGEST:.0f} seconds, got {expires_in:g}")


def _check_maker(actor: Principal, role: Role | None, grants: tuple[Grant, ...]) -> None:
    actor.require(role or Role.VIEWER)
    for grant in grants:
        if actor.role is None or not actor.role.gives(grant.scope):
            raise ForbiddenError(f"scope {grant.scope.value}: {actor.name} may not do that either")


def _until(actor: Principal, now: float, expires_in: Lifetime) -> float | None:
    latest = math.inf if actor.expires_at is None else actor.expires_at
    if isinstance(expires_in, msgspec.UnsetType):
        return min(now + TOKEN_SECONDS, latest)
    wanted = math.inf if expires_in is None else now + expires_in
    if wanted > latest:
        raise ForbiddenError(
            f"{actor.name} holds for {latest - now:.0f} more seconds: expected no longer for one made with it"
        )
    return None if expires_in is None else wanted


def _owner_id(session: Session, actor: Principal) -> int | None:
    if not actor.owner:
        return None
    owner: User = session.exec(select(User).where(User.name == actor.owner)).one()
    return owner.id
