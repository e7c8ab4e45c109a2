"""Fixtures of the browser tests: a seeded fleet, a server on it, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")

from playwright.sync_api import Browser, expect

from console import PATIENCE_MS, Console, chromium, copied, serve
from seed_fleet import Seeded, seed

expect.set_options(timeout=PATIENCE_MS / 3)


class Fleet(NamedTuple):
    """A seeded data folder that no server runs on."""

    data: Path
    people: Seeded


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Seed a fleet once."""
    data = tmp_path_factory.mktemp("seeded") / "data"
    return Fleet(data, seed(data))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Run one browser for all tests."""
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="session")
def console(browser: Browser, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """Serve the fleet for tests that only look."""
    del browser  # first, so that a missing chromium skips before a server starts
    with serve(copied(fleet.data, tmp_path_factory.mktemp("console") / "data"), fleet.people) as running:
        yield running


@pytest.fixture
def own_console(browser: Browser, fleet: Fleet, tmp_path: Path) -> Iterator[Console]:
    """Serve a copy of the fleet for one test that changes something."""
    del browser
    with serve(copied(fleet.data, tmp_path / "data"), fleet.people) as running:
        yield running


@pytest.fixture(scope="module")
def desk(browser: Browser, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """Serve one copy of the fleet for a module's tests that change devices of their own."""
    del browser
    with serve(copied(fleet.data, tmp_path_factory.mktemp("desk") / "data"), fleet.people) as running:
        yield running
