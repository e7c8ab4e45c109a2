"""People and their logins."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Final, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlmodel import Session, col, delete, func, select

from fleet.errors import WireError
from fleet.ids import Name
from server.db.engine import Database
from server.db.people_tables import OutsideIdentity
from server.db.tables import LoginSession, User
from server.errors import ConflictError, InvalidError, NotFoundError, TooManyError, UnauthenticatedError
from server.ports.clock import Clock
from server.services.people.audit import Audit
from server.services.people.login_failures import LoginFailures
from server.services.people.roles import SYSTEM, Principal, Role
from server.services.people.secrets import PASSWORD_BYTES, hashed, new_secret
from server.services.people.tokens import Tokens

SESSION_SECONDS: Final = 12 * 3600.0
PASSWORD_LENGTH: Final = 12
#: Passwords that are checked at once, each in 64 MiB (argon2), and seconds to wait for a turn.
_HASHED_AT_ONCE: Final = 4
_HASHING_SECONDS: Final = 5.0
#: Names that the audit log has for others.
RESERVED: Final = frozenset({SYSTEM.name})


class FirstCredential(NamedTuple):
    """The admin that the first start makes; shown once."""

    user: str
    password: str
    token: str


class Recovered(NamedTuple):
    """What a person who lost their credential gets; shown once."""

    password: str
    token: str | None


class Accounts:
    """People, and in `tokens` those of their machines."""

    def __init__(
        self, database: Database, clock: Clock, audit: Audit, *, groups_decide: bool = False
    ) -> None:
        """Keep what is needed; nothing is read yet.

        Args:
            database: where people are kept.
            clock: the time.
            audit: told of every change.
            groups_decide: people of the identity provider have the role of their groups there.
        """
        self._groups_decide: Final = groups_decide
        self._database: Final = database
        self._clock: Final = clock
        self._audit: Final = audit
        self.tokens: Final = Tokens(database, clock, audit)
        self._hasher: Final = PasswordHasher()
        self._failures: Final = LoginFailures()
        self._hashing: Final = threading.BoundedSemaphore(_HASHED_AT_ONCE)
        # Verified against when there is no such person, so that time tells nothing about who exists.
        self._decoy: Final = self._hasher.hash(new_secret())

    # --- the first start -----------------------------------------------------------------------------

    def first_start(self) -> FirstCredential | None:
        """Make an admin with a password and a token if there is nobody yet; return them, or None."""
        with self._database.write() as session:
            if session.exec(select(func.count()).select_from(User)).one():
                return None
            password, token = new_secret(PASSWORD_BYTES), new_secret()
            self._add_user(session, SYSTEM, "admin", password, Role.ADMIN)
            session.flush()
            admin = Principal(name=SYSTEM.name, role=Role.ADMIN, owner="admin")
            self.tokens.insert(session, admin, "first-start", token, Role.ADMIN)
        return FirstCredential("admin", password, token)

    # --- logging in ----------------------------------------------------------------------------------

    def login(self, name: str, password: str, address: str) -> str:
        """Check a password and return the secret of a new session, for the cookie.

        Args:
            name: who they say they are.
            password: their proof.
            address: where they come from; failures are counted by it and by name (`login_failures`).

        Raises:
            UnauthenticatedError: no such person, or another password.
            TooManyError: too many failures.
        """
        user = self._proven(name, password, address)
        if user is None:
            raise UnauthenticatedError("wrong name or password")
        with self._database.write() as session:
            return self.begin_session(session, user, "password")

    def _proven(self, name: str, password: str, address: str) -> User | None:
        """Return the person whose password it is, or None; who guesses is slowed down."""
        self._failures.attempt(address, name, self._clock.now())
        with self._database.read() as session:
            user: User | None = session.exec(select(User).where(User.name == name)).first()
        try:
            verified = self._verified(user, password)
        except TooManyError:
            self._failures.take_back(address, name)
            raise
        if not verified:
            return None
        self._failures.succeeded(address, name)
        return user

    def begin_session(self, session: Session, user: User, how: str) -> str:
        """Let a person in whose identity is proven; return the secret of their session, for the cookie.

        Args:
            session: the transaction.
            user: who.
            how: they proved it, for the audit log.
        """
        secret, now = new_secret(), self._clock.now()
        session.exec(delete(LoginSession).where(col(LoginSession.expires_at) < now))
        session.add(
            LoginSession(
                secret_hash=hashed(secret),
                user_id=user.id or 0,
                created_at=now,
                expires_at=now + SESSION_SECONDS,
            )
        )
        who = Principal(name=user.name, role=Role(user.role), owner=user.name)
        self._audit.record(session, who, "session.begin", f"session of {user.name}", after={"by": how})
        return secret

    def _verified(self, user: User | None, password: str) -> bool:
        # A person of an identity provider has no password here.
        stored = user.password_hash if user is not None and not user.disabled else ""
        if not self._hashing.acquire(timeout=_HASHING_SECONDS):
            raise TooManyError("too many logins at once; try again")
        try:
            self._hasher.verify(stored or self._decoy, password)
        except (VerifyMismatchError, InvalidHashError):
            return False
        finally:
            self._hashing.release()
        return bool(stored)

    def logout(self, actor: Principal, secret: str) -> None:
        """End the session of this cookie."""
        with self._database.write() as session:
            gone = session.exec(delete(LoginSession).where(col(LoginSession.secret_hash) == hashed(secret)))
            if gone.rowcount:
                self._audit.record(session, actor, "session.end", f"session of {actor.name}")

    def by_cookie(self, secret: str) -> Principal | None:
        """Return whose session the cookie's secret is, or None."""
        query = (
            select(User)
            .join(LoginSession, col(LoginSession.user_id) == User.id)
            .where(LoginSession.secret_hash == hashed(secret), LoginSession.expires_at > self._clock.now())
        )
        with self._database.read() as session:
            user = session.exec(query).first()
        if user is None or user.disabled:
            return None
        return Principal(name=user.name, role=Role(user.role), by_cookie=True, owner=user.name)

    # --- people --------------------------------------------------------------------------------------

    def users(self) -> list[User]:
        """Return everybody, by name."""
        with self._database.read() as session:
            return list(session.exec(select(User).order_by(User.name)))

    @staticmethod
    def _is_outside(session: Session, user_id: int) -> bool:
        query = select(OutsideIdentity).where(OutsideIdentity.user_id == user_id)
        return session.exec(query).first() is not None

    def origins(self) -> dict[int, str]:
        """Return the identity provider of each person who comes from one, by the person's id."""
        with self._database.read() as session:
            return {row.user_id: row.issuer for row in session.exec(select(OutsideIdentity))}

    def add_user(self, actor: Principal, name: str, password: str, role: Role) -> User:
        """Add a person.

        Raises:
            InvalidError: a bad name, or a password that is too short.
            ConflictError: the name is taken.
        """
        _check_name(name)
        _check_password(password)
        with self._database.write() as session:
            if session.exec(select(User).where(User.name == name)).first():
                raise ConflictError(f"user {name}: exists already")
            return self._add_user(session, actor, name, password, role)

    def change_user(
        self, actor: Principal, name: str, *, role: Role | None = None, disabled: bool | None = None
    ) -> User:
        """Change a person's role, or lock them out; nobody changes themselves.

        Raises:
            NotFoundError: there is no such person.
            ConflictError: it is the caller's own account.
        """
        if name in (actor.name, actor.owner):
            raise ConflictError("expected another admin to change your account")
        with self._database.write() as session:
            user: User | None = session.exec(select(User).where(User.name == name)).first()
            if user is None or user.id is None:
                raise NotFoundError(f"user {name}: expected an existing one")
            if role is not None and self._groups_decide and self._is_outside(session, user.id):
                raise ConflictError(f"user {name}: their groups at the identity provider say their role")
            before = {"role": user.role, "disabled": user.disabled}
            user.role = user.role if role is None else role.value
            user.disabled = user.disabled if disabled is None else disabled
            session.add(user)
            session.exec(delete(LoginSession).where(col(LoginSession.user_id) == user.id))
            after = {"role": user.role, "disabled": user.disabled}
            self._audit.record(session, actor, "user.change", f"user {name}", before=before, after=after)
        return user

    def change_password(self, actor: Principal, old: str, new: str) -> None:
        """Change the caller's own password, and end their other sessions.

        Raises:
            UnauthenticatedError: the old password is wrong, or the caller is no person.
            TooManyError: too many wrong ones; a stolen session is no way to guess at it.
            InvalidError: the new one is too short.
        """
        _check_password(new)
        # Outside of the transaction: checking takes long, and on SQLite every other writer would wait for it.
        found = self._proven(actor.name, old, "a session")
        if found is None:
            raise UnauthenticatedError("wrong password")
        made = self._hasher.hash(new)
        with self._database.write() as session:
            user = session.exec(select(User).where(User.name == actor.name)).first()
            if user is None or user.password_hash != found.password_hash:
                raise UnauthenticatedError("wrong password")
            user.password_hash = made
            session.add(user)
            session.exec(delete(LoginSession).where(col(LoginSession.user_id) == user.id))
            self._audit.record(session, actor, "user.password", f"user {user.name}")

    def recover(self, name: str, *, with_token: bool) -> Recovered:
        """Give a person a new password, for the one who holds the database itself; end their sessions.

        Args:
            name: the person. One who was disabled is enabled: the password is to be of use.
            with_token: make a token of the same role too.

        Raises:
            NotFoundError: there is no such person; names those there are.
            ConflictError: they come from an identity provider.
        """
        actor = Principal(name=f"data folder (uid {os.getuid()})", role=Role.ADMIN)
        made = Recovered(new_secret(PASSWORD_BYTES), new_secret() if with_token else None)
        with self._database.write() as session:
            everybody = {user.name: user for user in session.exec(select(User).order_by(User.name))}
            user = everybody.get(name)
            if user is None or user.id is None:
                raise NotFoundError(f"user {name}: expected one of {', '.join(everybody) or 'nobody'}")
            if self._is_outside(session, user.id):
                raise ConflictError(f"user {name}: has no password here, but one at an identity provider")
            before, user.disabled = {"disabled": user.disabled}, False
            user.password_hash = self._hasher.hash(made.password)
            session.add(user)
            session.exec(delete(LoginSession).where(col(LoginSession.user_id) == user.id))
            after = {"disabled": False}
            self._audit.record(session, actor, "user.recover", f"user {name}", before=before, after=after)
            if made.token is not None:
                owned = replace(actor, owner=name)
                self.tokens.insert(session, owned, name, made.token, Role(user.role))
        return made

    def _add_user(self, session: Session, actor: Principal, name: str, password: str, role: Role) -> User:
        user = User(
            name=name,
            password_hash=self._hasher.hash(password),
            role=role.value,
            created_at=self._clock.now(),
        )
        session.add(user)
        self._audit.record(session, actor, "user.add", f"user {name}", after={"role": role.value})
        return user


def _check_name(name: str) -> None:
    try:
        Name(name)
    except WireError as error:
        raise InvalidError(str(error)) from error
    if name in RESERVED:
        raise InvalidError(f"name: expected another one, {name} is the server itself")


def _check_password(password: str) -> None:
    if len(password) < PASSWORD_LENGTH:
        raise InvalidError(f"password: expected at least {PASSWORD_LENGTH} characters, got {len(password)}")
