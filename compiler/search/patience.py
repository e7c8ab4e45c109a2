"""How long trying may go on, and what is not to be tried at all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final


class Patience:
    """A time budget, which begins when it is made."""

    def __init__(
        self, seconds: float, crashed: Mapping[str, str], untried: frozenset[str], *, at_once: bool = True
    ) -> None:
        """Take what bounds the search.

        Args:
            seconds: that trying may take; 0 for as long as it takes.
            crashed: candidates that ended the process in an earlier attempt, and how.
            untried: candidates that an earlier compilation had no time for, when it is repeated.
            at_once: several tool-chains may work beside one another.
        """
        self.crashed: Final = crashed
        self.untried: Final = untried
        self.at_once: Final = at_once
        self._end: Final = time.monotonic() + seconds if seconds else None

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return self._end is not None and time.monotonic() > self._end
