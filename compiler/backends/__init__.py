"""Tool-chains: one file each, found by the name that a profile gives; a new one is a new file.

A backend's module has a function `backend() -> Backend` (`compiler.ports`).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, cast

from compiler.errors import NoBackendError
from compiler.ports import Backend
from firmware_profiles import registry
from firmware_profiles.profile import Profile
from fleet.errors import MissingExtraError


def names() -> frozenset[str]:
    """Return the names of the backends that there are."""
    return frozenset(x.name for x in pkgutil.iter_modules(__path__) if not x.name.startswith("_"))


def require(profile: Profile) -> None:
    """Check that something compiles for the target, importing nothing.

    Raises:
        NoBackendError: nothing does.
    """
    first = profile.backends[0]
    if first not in names():
        able = [x for x in registry.names() if registry.load(x).backends[0] in names()]
        raise NoBackendError(profile.name, first, ", ".join(able))


def load(name: str) -> Backend:
    """Return a backend.

    Raises:
        MissingExtraError: its libraries are not installed.
    """
    module: Any = importlib.import_module(f"{__name__}.{name}")  # a module has no type
    return cast("Backend", module.backend())


def of(profile: Profile) -> tuple[dict[str, Backend], list[str]]:
    """Return the target's backends by name, and a note for each that is not there.

    Raises:
        NoBackendError: there is none of the first one's name.
        MissingExtraError: the first one's libraries are not installed.
    """
    require(profile)
    found = {profile.backends[0]: load(profile.backends[0])}
    notes = []
    for name in profile.backends[1:]:
        backend = _installed(name)
        if isinstance(backend, MissingExtraError):
            notes.append(f"{name} candidates were not tried: {backend}")
        else:
            found[name] = backend
    return found, notes


def _installed(name: str) -> Backend | MissingExtraError:
    try:
        return load(name)
    except MissingExtraError as error:
        return error
