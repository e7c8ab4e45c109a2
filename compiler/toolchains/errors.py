"""What can go wrong with tool-chains in environments of their own.

::

    KedgeError
    ├── UserError
    │   ├── UnknownToolchainError     there is no tool-chain of that name
    │   ├── MissingToolchainError     it is not installed; the message names the command
    │   ├── LicenceError              its terms have not been accepted; the message names the command
    │   └── MissingPythonError        this machine has no Python that it runs on
    └── CompileError
        ├── ToolchainDefinitionError  its definition is malformed
        └── ToolchainInstallError     it could not be installed, or does not work once installed
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.errors import CompileError
from fleet.errors import UserError


class UnknownToolchainError(UserError):
    """There is no tool-chain of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """Name it, and those that there are."""
        super().__init__(f"expected a tool-chain of {', '.join(known) or '(none)'}; got {name!r}")


class MissingToolchainError(UserError):
    """A tool-chain is needed and not installed."""

    def __init__(self, name: str, purpose: str, command: str) -> None:
        """Name it, what it is for, and the command that installs it."""
        super().__init__(f"tool-chain {name!r} ({purpose}) is not installed: {command}")


class LicenceError(UserError):
    """A tool-chain's terms have not been accepted."""

    def __init__(self, name: str, licence: str, command: str) -> None:
        """Name it, its terms, and the command that accepts them and installs it."""
        super().__init__(f"tool-chain {name!r} stands under the {licence}, to be accepted first: {command}")


class MissingPythonError(UserError):
    """This machine has no Python that a tool-chain runs on."""

    def __init__(self, name: str, wanted: str, example: str) -> None:
        """Name the tool-chain, the versions that it takes, and one to install."""
        super().__init__(
            f"tool-chain {name!r} needs Python {wanted}, and this machine has none: install python{example} "
            f"(sudo apt-get install python{example} python{example}-venv, or: pyenv install {example})"
        )


class ToolchainDefinitionError(CompileError):
    """A tool-chain's definition is malformed."""


class ToolchainInstallError(CompileError):
    """A tool-chain could not be installed, or does not work once installed."""
