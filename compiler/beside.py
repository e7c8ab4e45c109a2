"""Work in several threads at once, and one line that tells what all of them are at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

#: Is told stage, done, total (0: unknown) and detail.
Tell = Callable[[str, int, int, str], None]
#: Between the names of what is being worked on.
AND: Final = " | "


class Beside:
    """Tells of the work of several threads: how much is done in all, and what each is at."""

    def __init__(self, tell: Tell, total: int) -> None:
        """Take whom to tell, and how much there is to do."""
        self._tell: Final = tell
        self._total: Final = total
        self._lock: Final = threading.Lock()
        self._begun = 0
        self._at: Final[dict[str, str]] = {}

    def at(self, thread: str, stage: str, detail: str, *, counts: bool = False) -> None:
        """Tell that a thread has begun something, which counts or not."""
        with self._lock:
            self._at[thread] = detail
            self._tell(stage, min(self._begun, self._total), self._total, AND.join(self._at.values()))
            self._begun += counts

    def done(self, thread: str) -> None:
        """Note that a thread has nothing more to do."""
        with self._lock:
            self._at.pop(thread, None)


def run(tasks: Mapping[str, Callable[[], None]], *, at_once: bool) -> None:
    """Do the tasks, each in a thread of its own or one after the other.

    Raises:
        Exception: what the first of them that failed raised, when all have ended.
    """
    if not at_once or len(tasks) < 2:  # noqa: PLR2004 - a single one needs no thread
        for task in tasks.values():
            task()
        return
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        for future in [pool.submit(task) for task in tasks.values()]:
            future.result()
