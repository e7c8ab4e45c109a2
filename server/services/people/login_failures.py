"""Failed logins, counted: guessing is slowed down by address and by name. Time is passed in."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from typing import Final

from server.errors import TooManyError
from server.services.people.secrets import hashed

#: Failed logins that one address, or one name, may have within the window.
LOGIN_FAILURES: Final = 10
LOGIN_WINDOW: Final = 300.0


class LoginFailures:
    """Counts within a sliding window; safe across threads."""

    def __init__(self) -> None:
        """Remember none."""
        self._lock: Final = threading.Lock()
        self._times: Final[defaultdict[str, deque[float]]] = defaultdict(deque)

    def __len__(self) -> int:
        """Return how many addresses and names are remembered."""
        return len(self._times)

    def attempt(self, address: str, name: str, now: float) -> None:
        """Count an attempt as failed until it is known to be good: many at once are not more than one by one.

        Raises:
            TooManyError: there were too many.
        """
        keys = _keys(address, name)
        with self._lock:
            self._forget_old(now)
            for key in keys:
                times = self._times[key]
                if len(times) >= LOGIN_FAILURES:
                    wait = int(times[0] + LOGIN_WINDOW - now) + 1
                    raise TooManyError(f"too many failed logins; try again in {wait} s")
            for key in keys:
                self._times[key].append(now)

    def succeeded(self, address: str, name: str) -> None:
        """Forget the failures of the name; of the address, which may be a guesser's, this attempt alone."""
        of_address, of_name = _keys(address, name)
        with self._lock:
            self._times.pop(of_name, None)
            if self._times.get(of_address):
                self._times[of_address].pop()

    def _forget_old(self, now: float) -> None:
        for times in self._times.values():
            while times and times[0] < now - LOGIN_WINDOW:
                times.popleft()
        for key in [key for key, times in self._times.items() if not times]:
            del self._times[key]


def _keys(address: str, name: str) -> tuple[str, str]:
    """Return what to count by; a name may be a megabyte of anything."""
    return f"address {address}", f"name {hashed(name)}"
