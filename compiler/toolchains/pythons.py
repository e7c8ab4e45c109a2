"""Finding a Python of the version that a tool-chain runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from packaging.specifiers import SpecifierSet

#: Minor versions of Python 3 to look for, newest first.
MINORS: Final = range(15, 9, -1)
_ASK: Final = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
_PATIENCE_S: Final = 20


def candidates() -> Iterator[Path]:
    """Yield the Pythons of this machine: ours, those on PATH, pyenv's; some may not start."""
    yield Path(sys.executable)
    for minor in MINORS:
        found = shutil.which(f"python3.{minor}")
        if found:
            yield Path(found)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in MINORS:
        yield from sorted((root / "versions").glob(f"3.{minor}.*/bin/python"), reverse=True)


def find(wanted: str, places: Iterable[Path]) -> Path | None:
    """Return the first Python of the wanted versions, None where there is none.

    Args:
        wanted: a version specifier, such as ">=3.10,<3.12".
        places: where to look, best first.
    """
    specifier = SpecifierSet(wanted)
    return next((x for x in places if (version := _version(x)) and version in specifier), None)


def example(wanted: str) -> str:
    """Return a version of Python to recommend: the oldest that is wanted, as most was tested with it."""
    specifier = SpecifierSet(wanted)
    return next((f"3.{x}" for x in reversed(MINORS) if specifier.contains(f"3.{x}.99")), "3")


def _version(python: Path) -> str:
    """Return its version, "" where it does not start: a shim of pyenv's may lead nowhere."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _ASK], check=False, capture_output=True, text=True, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
