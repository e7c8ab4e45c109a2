"""The environments of one machine: what is defined, what is installed, and where."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from compiler.toolchains import definitions, installing
from compiler.toolchains.definitions import DIGITS, Definition
from compiler.toolchains.environments import Environment
from compiler.toolchains.errors import LicenceError, MissingToolchainError
from compiler.toolchains.installing import MARKER, Ready, Tell


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A tool-chain on this machine.

    Attributes:
        purpose: what it compiles.
        installed: whether it is there, whole and of the current lock.
        versions: its tools, where it is installed.
        python: versions of Python that it takes; where it is installed, its own.
        megabytes: disk that it takes, about.
        licence: terms to accept first, "" for none.
        folder: where it is, or goes.
        command: what installs it, "" where it is installed.
    """

    name: str
    purpose: str
    installed: bool
    versions: dict[str, str]
    python: str
    megabytes: int
    licence: str
    folder: str
    command: str


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """Tool-chains and their environments.

    Attributes:
        root: folder of the environments.
        definitions: folder of the definitions.
        workers: folder of the modules that run in the environments.
    """

    root: Path
    definitions: Path
    workers: Path

    def names(self) -> list[str]:
        """Return the names of the tool-chains, sorted."""
        return definitions.names(self.definitions)

    def definition(self, name: str) -> Definition:
        """Return what a tool-chain is made of.

        Raises:
            UnknownToolchainError: there is none of this name.
            ToolchainDefinitionError: its files are malformed.
        """
        return definitions.load(name, self.definitions)

    def environment(self, name: str) -> Environment:
        """Return a tool-chain that is installed.

        Raises:
            UnknownToolchainError: there is none of this name.
            MissingToolchainError: it is not installed; the message names the command.
        """
        definition = self.definition(name)
        ready = self._ready(definition)
        if ready is None:
            raise MissingToolchainError(name, definition.purpose, _command(definition))
        return self._environment(definition, ready)

    def install(self, name: str, tell: Tell, *, accept_licence: bool = False) -> Environment:
        """Install a tool-chain, unless it is there; an environment of an earlier lock goes.

        Args:
            name: of the tool-chain.
            tell: is told stage, done, total and detail.
            accept_licence: a person has accepted its terms.

        Raises:
            LicenceError: its terms are to be accepted first.
            MissingPythonError: this machine has no Python that it runs on.
            ToolchainInstallError: it could not be installed.
        """
        definition = self.definition(name)
        self.check_consent(name, accepted=accept_licence)

        def waiting() -> None:
            tell(f"install tool-chain {name}", 0, 1, "wait for another installation of it")

        with installing.locked(self.root / f".{name}.lock", waiting):
            ready = self._ready(definition)
            if ready:
                return self._environment(definition, ready)
            environment = installing.install(definition, self._folder(definition), self.workers, tell)
            self._remove_others(name, environment.folder)
        return environment

    def has(self, name: str) -> bool:
        """Return whether a tool-chain is installed."""
        return self._ready(self.definition(name)) is not None

    def check_consent(self, name: str, *, accepted: bool) -> None:
        """Check that a tool-chain may be installed.

        Raises:
            LicenceError: its terms are to be accepted first.
        """
        definition = self.definition(name)
        if definition.licence and not accepted and not self.has(name):
            raise LicenceError(name, definition.licence.name, _command(definition))

    def remove(self, name: str) -> bool:
        """Remove every environment of a tool-chain; return whether there was one.

        Raises:
            UnknownToolchainError: there is none of this name.
        """
        self.definition(name)
        there = bool(list(self._folders(name)))
        if there:
            with installing.locked(self.root / f".{name}.lock", lambda: None):
                self._remove_others(name, None)
        return there

    def status(self) -> list[Status]:
        """Return what there is and what is missing, sorted by name."""
        return [self._status(self.definition(name)) for name in self.names()]

    def _status(self, definition: Definition) -> Status:
        ready = self._ready(definition)
        return Status(
            name=definition.name,
            purpose=definition.purpose,
            installed=ready is not None,
            versions=ready.versions if ready else {},
            python=ready.python if ready else definition.python,
            megabytes=definition.megabytes,
            licence=definition.licence.name if definition.licence else "",
            folder=str(self._folder(definition)),
            command="" if ready else _command(definition),
        )

    def _folder(self, definition: Definition) -> Path:
        return self.root / f"{definition.name}-{definition.digest}"

    def _ready(self, definition: Definition) -> Ready | None:
        try:
            return msgspec.json.decode((self._folder(definition) / MARKER).read_bytes(), type=Ready)
        except (FileNotFoundError, ValueError):
            return None

    def _environment(self, definition: Definition, ready: Ready) -> Environment:
        return Environment(
            name=definition.name,
            folder=self._folder(definition),
            workers=self.workers,
            versions=ready.versions,
        )

    def _folders(self, name: str) -> Iterator[Path]:
        ours = re.compile(rf"{re.escape(name)}-[0-9a-f]{{{DIGITS}}}")
        return (x for x in self.root.glob(f"{name}-*") if ours.fullmatch(x.name))

    def _remove_others(self, name: str, keep: Path | None) -> None:
        for folder in list(self._folders(name)):
            if folder != keep:
                (folder / MARKER).unlink(missing_ok=True)  # first: what is half gone is no environment
                shutil.rmtree(folder)


def _command(definition: Definition) -> str:
    consent = " --accept-licence" if definition.licence else ""
    return f"kedge toolchain install {definition.name}{consent}"
