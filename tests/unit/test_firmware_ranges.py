"""Version ranges that a bundle asks for, against the versions that devices really have."""

from __future__ import annotations

import pytest

from device_agent.installer import satisfies


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("1.23.2", ">=1.20,<2", True),
        ("1.19.0", ">=1.20,<2", False),
        ("6.1.0-18-amd64", ">=6.1", True),  # Debian's kernel
        ("5.15.148-tegra", ">=6.1", False),  # Jetson's
        ("1.24.0rc1", ">=1.20", True),
        ("1.24.0rc1", ">=1.24", False),
        ("", ">=1", False),
        ("none", ">=0", False),
        ("1.0", "at least one", False),
    ],
)
def test_versions_lie_within_ranges(version: str, wanted: str, fits: bool) -> None:
    assert satisfies(version, wanted) is fits
