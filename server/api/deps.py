"""What every handler may ask for, and how it says who may call it."""

from __future__ import annotations

from typing import Any, TypeAlias

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from server.services.container import Services
from server.services.people.roles import Role
from server.services.people.scopes import Scope

#: A handler's parameter `services: ServicesDep`.
ServicesDep: TypeAlias = NamedDependency[SkipValidation[Services]]

#: `opt=PUBLIC`: anybody may call it.
PUBLIC: dict[str, Any] = {"public": True}


def role(needed: Role) -> dict[str, Any]:
    """Return a handler's `opt` that lets only this role and those above call it."""
    return {"role": needed}


def scoped(needed: Role, scope: Scope, *, narrows: bool = False) -> dict[str, Any]:
    """Return a handler's `opt` that lets this role call it, and tokens with this scope.

    Args:
        needed: the role.
        scope: what a token without a role needs.
        narrows: the handler keeps to the limits of the caller's grants (`Principal.within`, `covers`);
            without it, only grants without limits count.
    """
    return {"role": needed, "scope": scope, "narrows": narrows}


VIEWER = role(Role.VIEWER)
OPERATOR = role(Role.OPERATOR)
RELEASER = role(Role.RELEASER)
ADMIN = role(Role.ADMIN)
