"""A real `kedge serve` on a seeded fleet, and a real browser on it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from processes import KEDGE, listens, running, wait_until
from seed_fleet import Seeded

CHROMIUM: Final = "/usr/bin/chromium"
#: A shared machine pauses at will: what is waited for comes soon, or never.
PATIENCE_MS: Final = 90_000
ARGUMENTS: Final = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


class Console(NamedTuple):
    """A running server and who may log in."""

    url: str
    people: Seeded

    @contextlib.contextmanager
    def client(self, name: str = "", password: str = "") -> Iterator[httpx.Client]:
        """Give an HTTP client that is logged in as a browser would be; as the admin unless named."""
        headers = {"Origin": self.url, "Accept": "text/html"}
        form = {"name": name or self.people.admin, "password": password or self.people.password}
        with httpx.Client(base_url=self.url, headers=headers, timeout=30) as client:
            response = client.post("/login", data=form)
            assert response.status_code == 303, response.text
            yield client


@contextlib.contextmanager
def serve(data: Path, people: Seeded) -> Iterator[Console]:
    """Run `kedge serve` on a data folder for as long as the block lasts."""
    log = data.with_suffix(".log")
    with running([KEDGE, "serve", "--data", str(data), "--port", "0", "--json"], log) as process:
        process.wait_for_output('"url"', timeout=60)
        line = next(line for line in process.output().splitlines() if line.startswith("{"))
        url = json.loads(line)["url"]
        wait_until(lambda: listens(urlsplit(url).port or 0), "the console listens")
        yield Console(url, people)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's chromium, or skip the test by name."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        yield from _launched(playwright)


def _launched(playwright: Playwright) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    try:
        yield browser
    finally:
        browser.close()


def log_in(page: Page, console: Console, name: str = "", password: str = "") -> None:
    """Log in through the page's form, as the admin unless named."""
    page.context.set_default_timeout(PATIENCE_MS)
    page.goto(f"{console.url}/login")
    page.fill("#name", name or console.people.admin)
    page.fill("#password", password or console.people.password)
    page.click("button.primary")
    page.wait_for_url(f"{console.url}/")


def complaints(context: BrowserContext) -> list[str]:
    """Return a list that fills with what the browser complains about: script errors, refused resources."""
    heard: list[str] = []
    context.on("weberror", lambda error: heard.append(f"script: {error.error}"))
    context.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    return heard


def axe_source() -> str:
    """Return axe-core's path, or skip the test by name."""
    path = Path(__file__).resolve().parents[2] / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip("axe-core is not installed: make install")
    return path.read_text()


def copied(seeded: Path, to: Path) -> Path:
    """Return a copy of a seeded data folder, for a test that changes something."""
    shutil.copytree(seeded, to)
    return to
