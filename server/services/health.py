"""How the server is: its parts, its workers, and what it counted since it started."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class PartHealth:
    """One part.

    Attributes:
        ok: it works.
        detail: what is wrong, or "".
    """

    name: str
    ok: bool
    detail: str = ""


class Health:
    """Collects what the parts say of themselves, and counts."""

    def __init__(self) -> None:
        """Begin with no parts."""
        self._lock: Final = threading.Lock()
        self._parts: Final[dict[str, Callable[[], str]]] = {}
        self._counts: Final[Counter[str]] = Counter()

    def watch(self, name: str, check: Callable[[], str]) -> None:
        """Add a part; `check` returns "" when it works, or what is wrong in one line."""
        self._parts[name] = check

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
        found = [(name, check()) for name, check in list(self._parts.items())]
        return [PartHealth(name=name, ok=not detail, detail=detail) for name, detail in found]
