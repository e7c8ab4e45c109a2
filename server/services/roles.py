"""Who may do what: four roles, each including the ones before it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from server.errors import ForbiddenError


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


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is asking.

    Attributes:
        name: a person's name, or `token:<name>`.
        by_cookie: logged in with a browser, so requests from other sites must be refused.
    """

    name: str
    role: Role
    by_cookie: bool = False

    def require(self, role: Role) -> None:
        """Check that the caller has at least this role.

        Raises:
            ForbiddenError: they have not.
        """
        if not self.role.includes(role):
            raise ForbiddenError(f"expected role {role.value}, {self.name} has {self.role.value}")


#: The server itself, in the audit log.
SYSTEM = Principal(name="kedge", role=Role.ADMIN)
