"""A thread that does one thing over and over, survives failures, says what is wrong, and stops cleanly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from fleet.errors import KedgeError

LOG: Final = logging.getLogger("kedge.workers")
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


class Worker:
    """Calls `step` every `seconds`, and sooner when woken; after a failure, a little later each time."""

    def __init__(self, name: str, step: Callable[[], object], seconds: float) -> None:
        """Prepare it; nothing runs yet."""
        self.name: Final = name
        self._step: Final = step
        self._seconds: Final = seconds
        self._woken: Final = threading.Event()
        self._stopping: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name=name, daemon=True)
        self._failure = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Have the next step taken now."""
        self._woken.set()

    def stop(self) -> None:
        """Let the step under way come to its end, and stop."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(30)

    def health(self) -> str:
        """Return "" when it works, or what is wrong."""
        if not self._thread.is_alive():
            return "not running"
        return self._failure

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._step()
            except KedgeError as error:
                failures += 1
                LOG.warning("worker %s: %s", self.name, error)
                self._failure = str(error)
            except Exception as error:  # the worker's boundary: reported in log and health, then tried again
                failures += 1
                LOG.exception("worker %s", self.name)
                self._failure = f"{type(error).__name__}: {error}"
            else:
                failures, self._failure = 0, ""
            pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE) if failures else self._seconds
            self._woken.wait(pause)
            self._woken.clear()
