"""Tool-chain environments of this machine: a test that needs one skips by name where it is absent."""

from __future__ import annotations

import pytest

from compiler import toolchains
from compiler.toolchains import Environment
from compiler.toolchains.errors import MissingToolchainError


def needs(name: str) -> Environment:
    """Return an installed tool-chain, or skip the test with the command that installs it."""
    try:
        return toolchains.environment(name)
    except MissingToolchainError as error:
        pytest.skip(str(error))
