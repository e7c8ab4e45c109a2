"""Tool-chains that conflict with ours or stand under terms of their own, each in its own environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from compiler.toolchains.environments import Environment
from compiler.toolchains.installing import Tell
from compiler.toolchains.store import Status, Store

__all__ = ["Environment", "Status", "Store", "Tell", "ensure", "environment", "names", "status", "store"]

_HERE: Final = Path(__file__).parent


def root() -> Path:
    """Return the folder of the environments: `$KEDGE_TOOLCHAINS`, else where a person's data goes."""
    named = os.environ.get("KEDGE_TOOLCHAINS")
    if named:
        return Path(named).absolute()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "kedge" / "toolchains"


def store() -> Store:
    """Return the tool-chains that Kedge defines, and their environments on this machine."""
    return Store(root=root(), definitions=_HERE / "definitions", workers=_HERE / "workers")


def names() -> list[str]:
    """Return the names of the tool-chains, sorted."""
    return store().names()


def environment(name: str) -> Environment:
    """Return a tool-chain that is installed.

    Raises:
        UnknownToolchainError: there is none of this name.
        MissingToolchainError: it is not installed; the message names the command.
    """
    return store().environment(name)


def ensure(name: str, tell: Tell) -> Environment:
    """Return a tool-chain, installed first where it is missing and needs nobody's consent.

    Raises:
        LicenceError: it is missing, and its terms are to be accepted first.
        MissingPythonError: this machine has no Python that it runs on.
        ToolchainInstallError: it could not be installed.
    """
    return store().install(name, tell)


def status() -> list[Status]:
    """Return what there is and what is missing, sorted by name."""
    return store().status()
