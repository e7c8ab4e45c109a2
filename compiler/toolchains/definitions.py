"""What a tool-chain's environment is made of, as data: one TOML and one lock file each.

`<name>.toml` says what it is for and which Python it takes; `<name>.txt` names every distribution with its
version and hashes.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from compiler.toolchains.errors import ToolchainDefinitionError, UnknownToolchainError

_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PINNED: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*==", re.MULTILINE)
#: Of the lock's digest, in the environment's name.
DIGITS: Final = 12


class Licence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Terms that a person accepts before the tool-chain is installed.

    Attributes:
        name: how they are called.
        notice: what a person should know of them before accepting.
    """

    name: str
    notice: str


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool-chain.

    Attributes:
        purpose: what it compiles, in a few words.
        python: versions of Python that it runs on, as a version specifier.
        megabytes: disk that it takes, about.
        health: the worker that really builds its interpreter or library once, after the installation.
        requirements: direct requirements, which the lock file is resolved from.
        overrides: requirements of its dependencies to replace; an impossible marker leaves one out.
        licence: terms to accept first, if any.
        hint: what to know where installing it fails.
        lock: text of the lock file.
    """

    name: str
    purpose: str
    python: str
    megabytes: int
    health: str
    requirements: list[str]
    overrides: list[str] = []
    licence: Licence | None = None
    hint: str = ""
    lock: str = ""

    @property
    def digest(self) -> str:
        """Return what names the environment: another lock or another Python makes another one."""
        return hashlib.sha256(f"{self.python}\n{self.lock}".encode()).hexdigest()[:DIGITS]

    @property
    def distributions(self) -> int:
        """Return how many distributions the lock names."""
        return len(_PINNED.findall(self.lock))


def names(folder: Path) -> list[str]:
    """Return the names of the tool-chains that a folder defines, sorted."""
    return sorted(file.stem for file in folder.glob("*.toml"))


def load(name: str, folder: Path) -> Definition:
    """Read a definition.

    Raises:
        UnknownToolchainError: there is none of this name.
        ToolchainDefinitionError: its files are malformed.
    """
    if name not in names(folder):
        raise UnknownToolchainError(name, names(folder))
    definition = read(name, folder)
    lock = folder / f"{name}.txt"
    if not lock.is_file():
        raise ToolchainDefinitionError(f"{name}.toml: expected a lock file {lock.name} beside it; got none")
    text = lock.read_text(encoding="utf-8")
    if "--hash=" not in text:
        raise ToolchainDefinitionError(f"{lock.name}: expected a hash for every distribution; got none")
    return msgspec.structs.replace(definition, lock=text)


def read(name: str, folder: Path) -> Definition:
    """Read a definition without its lock file.

    Raises:
        ToolchainDefinitionError: malformed.
    """
    file = f"{name}.toml"
    try:
        definition = msgspec.toml.decode((folder / file).read_bytes(), type=Definition)
        SpecifierSet(definition.python)
    except (msgspec.DecodeError, InvalidSpecifier, ValueError) as error:
        raise ToolchainDefinitionError(f"{file}: {error}") from error
    if definition.name != name or not _NAME.fullmatch(name):
        raise ToolchainDefinitionError(f"{file}: key `name`: expected {name!r}, got {definition.name!r}")
    return definition
