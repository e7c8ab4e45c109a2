"""How many millijoules a request takes: a meter where the machine has one, else an estimate that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: What one busy core is taken to draw, in watts, where nothing measures it.
WATTS_PER_CORE: Final = 3.0
ESTIMATED: Final = "estimated"
_RAPL: Final = "sys/class/powercap/intel-rapl:0/energy_uj"


class EnergyMeter:
    """Energy per request.

    Attributes:
        source: "rapl" where the package's counter can be read, else "estimated".
    """

    def __init__(self, system: Path = Path("/"), watts: float = WATTS_PER_CORE) -> None:
        """Look for a meter below `system`."""
        self._counter: Final = system / _RAPL
        self._watts: Final = watts
        self.source: Final = "rapl" if self._microjoules() is not None else ESTIMATED
        self._last = (0.0, self._microjoules() or 0)

    def watts(self, now: float) -> float:
        """Return the mean power since the last call (a meter), or the assumed one (an estimate).

        Args:
            now: monotonic seconds.
        """
        read = self._microjoules()
        if read is None or self.source == ESTIMATED:
            return self._watts
        (then, before), self._last = self._last, (now, read)
        if not then or now <= then or read < before:  # the first call, or the counter has wrapped
            return self._watts
        return (read - before) / 1e6 / (now - then)

    def _microjoules(self) -> int | None:
        try:
            return int(self._counter.read_text())
        except (OSError, ValueError):
            return None
