"""Who may do what: four roles, each including the ones before it, or the scopes of a token."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import ForbiddenError
from server.services.people.scopes import RULES, Grant, Scope


class Role(str, enum.Enum):
    """What a person or machine may do.

    viewer looks; operator also enrols devices and runs rollouts; releaser also publishes releases; admin also
    manages people, tokens and keys.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    RELEASER = "releaser"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """Its place, lowest first."""
        return list(Role).index(self)

    def includes(self, other: Role) -> bool:
        """Return whether this role may do what the other may."""
        return self.rank >= other.rank

    def gives(self, scope: Scope) -> bool:
        """Return whether this role may do what the scope lets one do."""
        return self.includes(Role(RULES[scope].role))


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is asking.

    Attributes:
        name: a person's name, or `token:<name>`.
        role: None for a token that has scopes instead.
        by_cookie: logged in with a browser, so requests from other sites must be refused.
        owner: the person who answers for it: a person's own name, whoever made a token, "" for nobody.
        grants: what a token without a role may do.
        token_id, expires_at: of a token; None for a person.
    """

    name: str
    role: Role | None
    by_cookie: bool = False
    owner: str = ""
    grants: tuple[Grant, ...] = ()
    token_id: int | None = None
    expires_at: float | None = None

    def has(self, role: Role) -> bool:
        """Return whether the caller has at least this role."""
        return self.role is not None and self.role.includes(role)

    def require(self, role: Role) -> None:
        """Check that the caller has at least this role.

        Raises:
            ForbiddenError: they have not.
        """
        if not self.has(role):
            has = "scopes" if self.role is None else self.role.value
            raise ForbiddenError(f"expected role {role.value}, {self.name} has {has}")

    def within(self, scope: Scope) -> tuple[Grant, ...] | None:
        """Return the grants that what is shown must fit one of; None: everything may be shown."""
        if self.role is not None:
            return None
        found = tuple(grant for grant in self.grants if grant.scope is scope)
        return found if all(grant.limited for grant in found) else None

    def covers(
        self, scope: Scope, *, model: str | None = None, labels: Mapping[str, str] | None = None
    ) -> bool:
        """Return whether one grant covers all of this; who has a role is limited by no grant."""
        grants = self.within(scope)
        return grants is None or any(grant.fits(model=model, labels=labels) for grant in grants)

    def check(
        self, scope: Scope, *, model: str | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        """Check that one grant covers all of this.

        Raises:
            ForbiddenError: none does.
        """
        if not self.covers(scope, model=model, labels=labels):
            allowed = "; ".join(str(grant) for grant in self.within(scope) or ())
            raise ForbiddenError(f"{self.name}: expected what its scopes cover: {allowed}")


#: The server itself, in the audit log.
SYSTEM = Principal(name="kedge", role=Role.ADMIN)
