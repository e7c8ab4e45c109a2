"""Claims: the right to enrol so many devices until some day."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from sqlmodel import Session, col, select, update

from firmware_profiles import registry
from firmware_profiles.errors import ProfileError, UnknownTargetError
from fleet.errors import WireError
from fleet.ids import Name
from fleet.wire.enrolment import ClaimToken
from server.db.engine import Database
from server.db.tables import Claim
from server.errors import ForbiddenError, InvalidError, NotFoundError
from server.ports.clock import Clock
from server.services.people.audit import Audit
from server.services.people.labels import checked_labels
from server.services.people.roles import Principal
from server.services.people.scopes import Scope
from server.services.people.secrets import hashed, new_secret

MAX_QUOTA: Final = 100_000
MAX_SECONDS: Final = 366 * 24 * 3600.0


class Claims:
    """Makes, lists, spends and revokes claims."""

    def __init__(
        self, database: Database, clock: Clock, audit: Audit, root_fingerprint: Callable[[], str]
    ) -> None:
        """Keep what is needed; `root_fingerprint` tells which root the token's bearer shall trust."""
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._fingerprint: Final = root_fingerprint

    def create(
        self,
        actor: Principal,
        *,
        name: str = "claim",
        quota: int = 1,
        expires_in: float = 24 * 3600.0,
        target: str = "",
        labels: Mapping[str, str] | None = None,
        approval: bool = False,
    ) -> tuple[Claim, ClaimToken]:
        """Make a claim; return it with the token, which is shown once.

        Args:
            actor: who asks.
            name: for people.
            quota: how many devices may enrol with it.
            expires_in: seconds.
            target: the only target that may enrol with it, or "" for any.
            labels: given to each device that enrols with it.
            approval: a person must let in each device that enrols with it.

        Raises:
            InvalidError: a value is out of its range.
        """
        _check(name, target, quota, expires_in)
        actor.check(Scope.CLAIMS_WRITE, labels=labels)
        secret, now = new_secret(), self._clock.now()
        claim = Claim(
            name=name,
            secret_hash=hashed(secret),
            quota=quota,
            target=target,
            labels=checked_labels(labels or {}),
            created_by=actor.name,
            created_at=now,
            expires_at=now + expires_in,
            approval=approval,
        )
        with self._database.write() as session:
            session.add(claim)
            session.flush()
            after = {"name": name, "quota": quota, "target": target, "expires_at": claim.expires_at}
            after |= {"approval": approval}
            self._audit.record(session, actor, "claim.create", f"claim {claim.id}", after=after)
        return claim, ClaimToken(secret, self._fingerprint())

    def page(self, offset: int = 0, limit: int = 100) -> list[Claim]:
        """Return claims, the newest first; never a secret."""
        with self._database.read() as session:
            return list(
                session.exec(select(Claim).order_by(col(Claim.id).desc()).offset(offset).limit(limit))
            )

    def revoke(self, actor: Principal, claim_id: int) -> None:
        """Let nobody enrol with a claim any more.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._database.write() as session:
            claim = session.get(Claim, claim_id)
            if claim is None:
                raise NotFoundError(f"claim {claim_id}: expected an existing one")
            claim.revoked_at = claim.revoked_at or self._clock.now()
            session.add(claim)
            self._audit.record(session, actor, "claim.revoke", f"claim {claim_id}")

    def spend(self, session: Session, secret: str, target: str) -> Claim:
        """Take one device off a claim's quota, in the transaction that enrols the device.

        Raises:
            ForbiddenError: the claim is unknown, used up, expired, revoked, or for another target.
        """
        claim: Claim | None = session.exec(select(Claim).where(Claim.secret_hash == hashed(secret))).first()
        # One message for all that is wrong with a secret: it tells a guesser nothing.
        if claim is None or claim.revoked_at is not None or claim.expires_at < self._clock.now():
            raise ForbiddenError("claim: expected a valid token; it is unknown, expired or revoked")
        if claim.target and claim.target != target:
            raise ForbiddenError(f"claim: expected a device of target {claim.target}, got {target}")
        spent = session.exec(
            update(Claim)
            .where(col(Claim.id) == claim.id, col(Claim.used) < col(Claim.quota))
            .values(used=col(Claim.used) + 1)
        )
        if spent.rowcount != 1:
            raise ForbiddenError(f"claim: used up, for {claim.quota} device{'s' if claim.quota > 1 else ''}")
        return claim

    def give_back(self, session: Session, claim_id: int | None) -> None:
        """Put one device back on a claim's quota: it was not let in."""
        session.exec(
            update(Claim)
            .where(col(Claim.id) == claim_id, col(Claim.used) > 0)
            .values(used=col(Claim.used) - 1)
        )

    def hash_of(self, session: Session, claim_id: int | None) -> str:
        """Return what is stored of a claim's secret, "" when there is no such claim."""
        claim = session.get(Claim, claim_id) if claim_id is not None else None
        return "" if claim is None else claim.secret_hash


def known_target(target: str) -> str:
    """Return the name of a compile target that there is.

    Raises:
        InvalidError: there is none of this name.
    """
    try:
        return registry.load(target).name
    except (UnknownTargetError, ProfileError) as error:
        raise InvalidError(str(error)) from error


def _check(name: str, target: str, quota: int, expires_in: float) -> None:
    try:
        Name(name)
    except WireError as error:
        raise InvalidError(str(error)) from error
    if target:
        known_target(target)
    if not 1 <= quota <= MAX_QUOTA:
        raise InvalidError(f"quota: expected 1 to {MAX_QUOTA}, got {quota}")
    if not (math.isfinite(expires_in) and 0 < expires_in <= MAX_SECONDS):
        raise InvalidError(f"expires_in: expected up to {MAX_SECONDS:.0f} seconds, got {expires_in:g}")
