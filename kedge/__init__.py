"""The `kedge` command: a thin front over the three programs, which it loads only when asked for."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
