"""What every handler may ask for, and how it says who may call it."""

from __future__ import annotations

from typing import Any, TypeAlias

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from server.services.container import Services
from server.services.roles import Role

#: A handler's parameter `services: ServicesDep`.
ServicesDep: TypeAlias = NamedDependency[SkipValidation[Services]]

#: `opt=PUBLIC`: anybody may call it.
PUBLIC: dict[str, Any] = {"public": True}


def role(needed: Role) -> dict[str, Any]:
    """Return a handler's `opt` that lets only this role and those above call it."""
    return {"role": needed}


VIEWER = role(Role.VIEWER)
OPERATOR = role(Role.OPERATOR)
RELEASER = role(Role.RELEASER)
ADMIN = role(Role.ADMIN)
