"""The way of a good update, as a device reports it."""

from __future__ import annotations

from typing import Final

STEPS: Final = (
    "downloading",
    "verifying",
    "staged",
    "loading",
    "golden_check",
    "shadow",
    "canary",
    "committed",
)
