"""Loading coremltools without what it says of parts that it has on macOS only."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Final

#: coremltools imports it where it is there, which takes as long as all the rest, to say that it is too new.
_NEIGHBOUR: Final = "sklearn"


def load() -> None:
    """Import coremltools, without what it says, and without the neighbour that it does not need."""
    if "coremltools" in sys.modules:
        return
    barred = _NEIGHBOUR not in sys.modules
    if barred:
        sys.modules[_NEIGHBOUR] = None  # type: ignore[assignment]  # None bars the import
    try:
        with quiet():
            import coremltools  # noqa: F401 - what matters is that it is imported now
    finally:
        if barred:
            del sys.modules[_NEIGHBOUR]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools from telling of its progress, its neighbours' versions and its missing parts."""
    logger = logging.getLogger("coremltools")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
