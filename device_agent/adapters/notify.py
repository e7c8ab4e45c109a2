"""systemd's readiness protocol (sd_notify(3)): datagrams on the socket that `NOTIFY_SOCKET` names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final


class Notifier:
    """Tells systemd how the agent is; without systemd it tells nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read where and how often to tell from the environment."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._address: Final = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.get("WATCHDOG_USEC", "")
        #: Seconds between signs of life: half of what systemd waits for; None when it does not.
        self.interval: Final = int(microseconds) / 2e6 if microseconds.isdigit() else None

    def tell(self, state: str) -> None:
        """Send a state, such as "READY=1", "WATCHDOG=1", "STOPPING=1"."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(state.encode(), self._address)
            except OSError:
                # systemd restarts a silent service by itself; the agent has nobody else to tell
                return
