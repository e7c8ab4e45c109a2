"""People from an identity provider: who they are here, and what they may do.

A person is the pair of issuer and subject. Names and addresses of mail are for reading only: nobody becomes
somebody else by being called like them, whatever the provider has verified.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from sqlmodel import Session, col, delete, select

from server.db.engine import Database
from server.db.people_tables import OutsideIdentity, UsedSignIn
from server.db.tables import LoginSession, User
from server.errors import ConflictError, ForbiddenError, UnauthenticatedError
from server.oidc_settings import OidcSettings
from server.ports.clock import Clock
from server.ports.identity import Attempt, IdentityProvider
from server.services.people.accounts import RESERVED, Accounts
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM, Role
from server.services.people.secrets import hashed, new_secret

#: Where browsers come back to.
CALLBACK: Final = "/login/oidc/callback"
#: How long a browser may take to come back.
SIGN_IN_SECONDS: Final = 600
_REMEMBERED: Final = 24 * 3600.0
_LONGEST_SUBJECT: Final = 255
_NAME: Final = 40


class SingleSignOn:
    """Lets people in whom the identity provider vouches for."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        audit: Audit,
        accounts: Accounts,
        provider: IdentityProvider,
        settings: OidcSettings,
    ) -> None:
        """Keep what is needed.

        Raises:
            ValueError: a role of the settings is none.
        """
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self._accounts: Final = accounts
        self._provider: Final = provider
        self._claim: Final = settings.role_claim
        self._roles: Final = {group: Role(role) for group, role in settings.roles}
        self._default: Final = Role(settings.default_role) if settings.default_role else None
        self.title: Final = settings.title

    def begin(self) -> tuple[Attempt, str]:
        """Return a new attempt, which only the browser keeps, and where that goes with it.

        Raises:
            ProviderError: the provider does not answer.
        """
        attempt = Attempt(state=new_secret(), nonce=new_secret(), verifier=new_secret(48))
        return attempt, self._provider.address(attempt)

    def farewell(self) -> str:
        """Return where a person ends their session at the provider, or "".

        Raises:
            ProviderError: the provider does not answer.
        """
        return self._provider.farewell()

    def finish(self, attempt: Attempt | None, told: Mapping[str, str]) -> str:
        """Let the person in who came back; return the secret of their session, for the cookie.

        Args:
            attempt: what this browser was sent with, None when it keeps none.
            told: the query of the address that it came back to.

        Raises:
            UnauthenticatedError: it is not this browser's sign-in, or nobody is vouched for.
            ForbiddenError: the person may not do anything here.
            ProviderError: the provider does not answer.
        """
        if attempt is None or not told.get("state") or told["state"] != attempt.state:
            raise UnauthenticatedError(
                "this browser did not begin this sign-in, or too long ago; begin again"
            )
        # RFC 9207: whoever is spoken to by several providers must not take one's answer for another's.
        if told.get("iss", self._provider.issuer) != self._provider.issuer:
            raise UnauthenticatedError("another identity provider answers than was asked")
        if not told.get("code"):
            raise UnauthenticatedError("the identity provider let nobody in; begin again")
        self._check_unused(attempt)
        claims = self._provider.redeem(told["code"], attempt)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise UnauthenticatedError("the identity token names nobody")
        role = self._role(claims)
        if role is None:
            self._leave(subject)
            raise ForbiddenError("you are in no group that may use this server; ask its administrator")
        return self._enter(attempt, subject, role, claims)

    def _check_unused(self, attempt: Attempt) -> None:
        with self._database.read() as session:
            if session.get(UsedSignIn, hashed(attempt.state)) is not None:
                raise UnauthenticatedError("this sign-in was used already; begin again")

    def _enter(self, attempt: Attempt, subject: str, role: Role, claims: Mapping[str, object]) -> str:
        now = self._clock.now()
        with self._database.write() as session:
            session.exec(delete(UsedSignIn).where(col(UsedSignIn.used_at) < now - _REMEMBERED))
            session.add(UsedSignIn(state_hash=hashed(attempt.state), used_at=now))
            user = self._known(session, subject)
            if user is None:
                user = self._new(session, subject, role, claims)
            elif user.disabled:
                raise UnauthenticatedError(f"{user.name} is locked out of this server")
            elif self._claim and user.role != role.value:
                before, user.role = {"role": user.role}, role.value
                session.add(user)
                after = {"role": role.value}
                self._audit.record(
                    session, SYSTEM, "user.change", f"user {user.name}", before=before, after=after
                )
            return self._accounts.begin_session(session, user, self._provider.issuer)

    def _leave(self, subject: str) -> None:
        """End the sessions and tokens of somebody who is in no group any more."""
        with self._database.write() as session:
            user = self._known(session, subject)
            if user is None or user.id is None or user.disabled:
                return
            session.exec(delete(LoginSession).where(col(LoginSession.user_id) == user.id))
            ended = self._accounts.tokens.end_of(session, user.id)
            after = {"tokens": ended, "groups": "none that has a role"}
            self._audit.record(session, SYSTEM, "user.leave", f"user {user.name}", after=after)

    def _known(self, session: Session, subject: str) -> User | None:
        found = session.get(OutsideIdentity, (self._provider.issuer, subject))
        return None if found is None else session.get_one(User, found.user_id)

    def _new(self, session: Session, subject: str, role: Role, claims: Mapping[str, object]) -> User:
        name = self._free_name(session, subject, claims)
        user = User(name=name, password_hash="", role=role.value, created_at=self._clock.now())
        session.add(user)
        session.flush()
        session.add(OutsideIdentity(issuer=self._provider.issuer, subject=subject, user_id=user.id or 0))
        after = {"role": role.value, "from": self._provider.issuer}
        self._audit.record(session, SYSTEM, "user.add", f"user {name}", after=after)
        return user

    def _free_name(self, session: Session, subject: str, claims: Mapping[str, object]) -> str:
        wanted = readable_name(claims)
        mark = hashlib.sha256(f"{self._provider.issuer} {subject}".encode()).hexdigest()
        for name in (wanted, f"{wanted}-{mark[:6]}", f"{wanted}-{mark[:20]}"):
            taken = name in RESERVED or session.exec(select(User).where(User.name == name)).first()
            if not taken:
                return name
        raise ConflictError(f"user {wanted}: no free name for another person called so")

    def _role(self, claims: Mapping[str, object]) -> Role | None:
        groups = claimed(claims, self._claim) if self._claim else ()
        found = [self._roles[group] for group in groups if group in self._roles]
        return max(found, key=lambda role: role.rank, default=self._default)


def claimed(claims: Mapping[str, object], path: str) -> tuple[str, ...]:
    """Return the texts of a claim; a dotted path looks inside objects unless a claim is called so itself."""
    value: object = claims
    for step in (path,) if path in claims else path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return (value,)
    return tuple(x for x in value if isinstance(x, str)) if isinstance(value, list) else ()


def readable_name(claims: Mapping[str, object]) -> str:
    """Return what to call a person: their user name, else their verified address of mail up to the @."""
    told = claims.get("preferred_username")
    if not told and claims.get("email_verified") is True:
        told = claims.get("email")
    text = str(told or "").partition("@")[0].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", text).strip("._-")[:_NAME] or "person"
