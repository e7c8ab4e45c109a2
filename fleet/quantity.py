"""Amounts of bytes as people write them: `500KB`, `2GB`, `64MiB`."""

from __future__ import annotations

import re
from typing import Final

from fleet.errors import UserError

_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY: Final = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_FORM: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]I?)?B?", re.IGNORECASE)


class QuantityError(UserError):
    """It is no amount of bytes."""


def parse_bytes(text: str) -> int:
    """Read an amount of bytes; K, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024.

    Raises:
        QuantityError: it is none.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise QuantityError(f"bytes: expected a number such as 500KB, 2GB or 64MiB, got {text[:40]!r}")
    unit = (found[2] or "").upper()
    return int(float(found[1]) * {**_UNITS, **_BINARY}[unit])


def format_bytes(count: int) -> str:
    """Return an amount as people read it, and as `parse_bytes` takes it where it is a round one."""
    for unit, size in reversed(_UNITS.items()):
        if unit and count >= size:
            return f"{count / size:.6g}{unit}B"
    return f"{count}B"
