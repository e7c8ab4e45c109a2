"""What makes deltas, somewhere where its memory and time harm nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec


class FilePair(msgspec.Struct, frozen=True, kw_only=True):
    """Two versions of a file, and where its delta is to be written.

    Attributes:
        old_companion, new_companion: the descriptions of weights that have one; "" for none.
    """

    old: str
    new: str
    out: str
    old_companion: str = ""
    new_companion: str = ""


class DeltaMaker(Protocol):
    """Makes deltas of files."""

    def make(self, pairs: Sequence[FilePair], scratch: Path) -> None:
        """Write each pair's delta.

        Args:
            pairs: the files; all in `scratch`.
            scratch: a folder of the caller's.

        Raises:
            DeltaError: it took more memory or time than allowed, or failed.
        """
