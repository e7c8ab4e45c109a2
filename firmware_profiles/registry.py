"""Finding profiles: every file in `targets/` is a target."""

from __future__ import annotations

import difflib
import importlib.resources

import msgspec

from firmware_profiles.errors import ProfileError, UnknownTargetError
from firmware_profiles.profile import Profile


def names() -> tuple[str, ...]:
    """Return the names of all targets, sorted."""
    files = importlib.resources.files("firmware_profiles").joinpath("targets").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load(name: str) -> Profile:
    """Return a target's profile.

    Raises:
        UnknownTargetError: there is no target of this name.
        ProfileError: its file is malformed.
    """
    known = names()
    if name not in known:
        raise UnknownTargetError(name, known, difflib.get_close_matches(name, known, n=1))
    file = f"{name}.toml"
    text = importlib.resources.files("firmware_profiles").joinpath("targets").joinpath(file).read_bytes()
    return parse(text, file)


def parse(text: bytes, file: str) -> Profile:
    """Read a profile.

    Args:
        text: TOML.
        file: name of the file it comes from, for messages; without its suffix it must be the target's name.

    Raises:
        ProfileError: malformed; names file and key.
    """
    try:
        profile = msgspec.toml.decode(text, type=Profile)
    except (msgspec.DecodeError, ValueError) as error:
        raise ProfileError(f"{file}: {error}") from error
    if f"{profile.name}.toml" != file:
        raise ProfileError(
            f"{file}: key `name`: expected {file.removesuffix('.toml')!r}, got {profile.name!r}"
        )
    return profile
