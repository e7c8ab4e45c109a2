"""How the server is: its parts, its workers, and what it counted since it started."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, kw_only=True)
class PartHealth:
    """One part.

    Attributes:
        ok: it works.
        detail: what is wrong, or soon will be, or "".
    """

    name: str
    ok: bool
    detail: str = ""


#: Bytes below which a disk is as good as full, and below which it soon will be.
_FULL: Final = 16 * 1024 * 1024
_SOON_FULL: Final = 512 * 1024 * 1024


def room(folder: Path, at_least: int = _FULL) -> str:
    """Return "" where a folder's disk has room, or how little it has."""
    free = shutil.disk_usage(folder).free
    return "" if free >= at_least else f"{folder}: {free / 1e6:,.0f} MB are free; remove or move something"


def soon_full(folder: Path) -> str:
    """Return "" where a folder's disk has room for a while, or how little it has."""
    return room(folder, _SOON_FULL)


class Health:
    """Collects what the parts say of themselves, and counts."""

    def __init__(self) -> None:
        """Begin with no parts."""
        self._lock: Final = threading.Lock()
        self._parts: Final[dict[str, tuple[Callable[[], str], Callable[[], str]]]] = {}
        self._counts: Final[Counter[str]] = Counter()

    def watch(self, name: str, check: Callable[[], str], ahead: Callable[[], str] | None = None) -> None:
        """Add a part.

        Args:
            name: how it is called.
            check: returns "" when it works, or what is wrong in one line.
            ahead: returns "", or in one line what will be wrong unless somebody does something. The part
                works meanwhile.
        """
        self._parts[name] = (check, ahead or (lambda: ""))

    def count(self, name: str, more: int = 1) -> None:
        """Count something, such as "malformed_messages"."""
        with self._lock:
            self._counts[name] += more

    def counts(self) -> dict[str, int]:
        """Return what was counted since the start."""
        with self._lock:
            return dict(self._counts)

    def parts(self) -> list[PartHealth]:
        """Ask every part."""
        found = []
        for name, (check, ahead) in list(self._parts.items()):
            wrong = check()
            found.append(PartHealth(name=name, ok=not wrong, detail=wrong or ahead()))
        return found
