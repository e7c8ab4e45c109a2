"""A folder in memory where there is one: thousands of fsyncs are no part of most tests."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def memory_folder(otherwise: Path) -> Iterator[Path]:
    """Give a folder in memory for as long as the block lasts, or the one given where there is none."""
    if not os.access(_MEMORY, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="kedge-", dir=_MEMORY) as folder:
        yield Path(folder)
