"""Failed logins, counted: guessing is slowed down, and nobody is locked out by others. Time is passed in.

One address gets few guesses at one name. Against guesses at many names from one address, and at one name from
many addresses, there are higher bounds, for people behind one proxy share its address. Who has logged in from
an address does so again from there, however many others guess at the name (OWASP, "Blocking Brute Force
Attacks", device cookies).
"""

from __future__ import annotations

import ipaddress
import threading
from collections import deque
from typing import Final

from server.errors import TooManyError
from server.services.people.secrets import hashed

#: Failed logins that one address may have with one name within the window.
LOGIN_FAILURES: Final = 10
#: And those of one address with all names, or of one name from all addresses.
LOGIN_FAILURES_IN_ALL: Final = 100
LOGIN_WINDOW: Final = 300.0
#: Pairs of address and name that have logged in; the oldest are forgotten.
_KNOWN: Final = 10_000
#: Whoever has one address of these has them all (RFC 6177).
_IPV6_PREFIX: Final = 64


class LoginFailures:
    """Counts within a sliding window; safe across threads."""

    def __init__(self) -> None:
        """Remember none."""
        self._lock: Final = threading.Lock()
        self._times: Final[dict[str, deque[float]]] = {}
        self._known: Final[dict[str, None]] = {}

    def __len__(self) -> int:
        """Return how many counts there are."""
        return len(self._times)

    def attempt(self, address: str, name: str, now: float) -> None:
        """Count an attempt as failed until it is known to be good: many at once are not more than one by one.

        Raises:
            TooManyError: there were too many.
        """
        of_both, of_address, of_name = keys = _keys(address, name)
        limits = {of_both: LOGIN_FAILURES, of_address: LOGIN_FAILURES_IN_ALL, of_name: LOGIN_FAILURES_IN_ALL}
        with self._lock:
            self._forget_old(now)
            if of_both in self._known:
                limits = {of_both: LOGIN_FAILURES}
            for key, limit in limits.items():
                times = self._times.get(key)
                if times is not None and len(times) >= limit:
                    wait = int(times[0] + LOGIN_WINDOW - now) + 1
                    raise TooManyError(f"too many failed logins; try again in {wait} s")
            for key in keys:
                self._times.setdefault(key, deque()).append(now)

    def take_back(self, address: str, name: str) -> None:
        """Count an attempt no more: nobody has looked at the password."""
        with self._lock:
            for key in _keys(address, name):
                self._uncount(key)

    def succeeded(self, address: str, name: str) -> None:
        """Forget failures with the name from the address; of others, which may be guesses, this one alone."""
        of_both, of_address, of_name = _keys(address, name)
        with self._lock:
            self._times.pop(of_both, None)
            self._uncount(of_address)
            self._uncount(of_name)
            self._known.pop(of_both, None)
            self._known[of_both] = None
            if len(self._known) > _KNOWN:
                del self._known[next(iter(self._known))]

    def _uncount(self, key: str) -> None:
        times = self._times.get(key)
        if times:
            times.pop()

    def _forget_old(self, now: float) -> None:
        for times in self._times.values():
            while times and times[0] < now - LOGIN_WINDOW:
                times.popleft()
        for key in [key for key, times in self._times.items() if not times]:
            del self._times[key]


def _keys(address: str, name: str) -> tuple[str, str, str]:
    """Return what to count by: both, the address, the name; a name may be a megabyte of anything."""
    whence, who = f"address {_network(address)}", f"name {hashed(name)}"
    return f"{whence}, {who}", whence, who


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return hashed(address)  # what a proxy passes on may be no address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    # How a socket that listens for both kinds shows one of version 4.
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found), _IPV6_PREFIX), strict=False))
