"""Every page: accessible in light and dark, quiet, fit for a phone, readable without scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, ViewportSize, expect

from axe import axe
from console import Console, complaints, log_in
from seed_fleet import PASSWORD

PAGES: Final = {
    "overview": "/",
    "devices": "/devices",
    "devices, filtered": "/devices?state=late&sort=seen&order=desc",
    "device": "/devices/cam-harbour-03",
    "device that rolled back": "/devices/cam-north-02",
    "device that refused": "/devices/cam-north-04",
    "releases": "/releases",
    "rollouts": "/rollouts",
    "running rollout": "/rollouts/3",
    "halted rollout": "/rollouts/2",
    "new rollout": "/rollouts/new?release=4",
    "live": "/live",
    "offload": "/offload",
    "trust": "/trust",
    "audit": "/audit",
    "people": "/people",
    "what is not there": "/devices/nobody",
}
PHONE: Final = ViewportSize(width=360, height=740)
DESK: Final = ViewportSize(width=1440, height=900)


@pytest.fixture(scope="module")
def looking(browser: Browser, console: Console) -> Iterator[BrowserContext]:
    """Log in."""
    context = browser.new_context(color_scheme="light", viewport=DESK, reduced_motion="reduce")
    log_in(context.new_page(), console)
    yield context
    context.close()


@pytest.fixture(scope="module")
def on_phone(browser: Browser, console: Console) -> Iterator[BrowserContext]:
    """Log in on a narrow screen."""
    context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True)
    log_in(context.new_page(), console)
    yield context
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_accessible_and_keeps_the_policy(
    name: str, looking: BrowserContext, console: Console
) -> None:
    """Somebody with a screen reader or weak eyes opens each page; the browser has nothing to complain of."""
    heard = complaints(looking)
    page = looking.new_page()
    try:
        page.goto(f"{console.url}{PAGES[name]}")
        expect(page.locator("#stream[data-on]")).to_be_attached()
        assert axe(page) == []
        # Of all the rules, only those of contrast depend on the colours.
        page.emulate_media(color_scheme="dark")
        assert axe(page, "color-contrast", "link-in-text-block") == []
        missing = "the server responded with a status of 404"
        assert [text for text in heard if not (name == "what is not there" and missing in text)] == []
    finally:
        page.close()


def test_login_page_is_accessible(browser: Browser, console: Console) -> None:
    """A wrong password is told in words, beside the fields, and the page stays accessible."""
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
        page = context.new_page()
        page.goto(f"{console.url}/login")
        assert axe(page) == []
        page.fill("#name", "nobody")
        page.fill("#password", "wrong")
        page.click("button.primary")
        expect(page.get_by_role("alert")).to_have_text("Wrong name or password.")
        assert axe(page) == []
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_a_phone(name: str, on_phone: BrowserContext, console: Console) -> None:
    """An operator looks at the console on the way to the machine: nothing makes the page scroll sideways."""
    page = on_phone.new_page()
    try:
        page.goto(f"{console.url}{PAGES[name]}")
        expect(page.locator("h1")).to_be_visible()
        width: int = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
    finally:
        page.close()


def test_pages_can_be_read_without_scripts(browser: Browser, console: Console) -> None:
    """With scripts off everything can still be read, and a dialog still asks before it acts."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    log_in(page, console)
    page.goto(f"{console.url}/devices")
    expect(page.locator("tbody tr")).to_have_count(40)
    page.goto(f"{console.url}/offload")
    page.locator("summary").first.click()
    expect(page.locator("#share-table tbody tr").first).to_be_visible()
    page.goto(f"{console.url}/rollouts/3")
    page.get_by_role("button", name="Pause…").click()
    expect(page.get_by_role("dialog")).to_contain_text("Devices that have begun go on")
    context.close()


def test_charts_are_drawn_from_their_tables(browser: Browser, console: Console) -> None:
    """Each chart has a canvas for eyes and a table with the same series for everybody else."""
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    log_in(page, console)
    chart = page.locator("figure.chart")
    expect(chart.locator("canvas")).to_be_visible()
    heads = chart.locator(".table thead th").all_text_contents()
    assert heads == ["Time", "2.0.0", "2.1.0", "2.2.0"]
    newest = chart.locator(".table tbody tr").last.locator("td").all_text_contents()[1:]
    assert [int(text) for text in newest] == [0, 32, 8]
    context.close()


def test_theme_is_chosen_and_kept(browser: Browser, console: Console) -> None:
    """The system says light; the operator on night shift chooses dark, and it stays so on the next page."""
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    log_in(page, console)
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(background)
    button = page.locator("#theme")
    expect(button).to_be_visible()
    button.click()
    button.click()
    expect(button).to_have_accessible_name("Colours: dark")
    page.goto(f"{console.url}/devices")
    assert page.evaluate(background) != light
    context.close()


def test_viewer_sees_no_buttons_that_would_be_refused(browser: Browser, console: Console) -> None:
    """A viewer reads everything; nothing that acts is shown, and what is tried by hand is refused."""
    context = browser.new_context()
    page = context.new_page()
    log_in(page, console, console.people.viewer, PASSWORD)
    for path in ("/devices/cam-north-01", "/rollouts", "/rollouts/3", "/releases"):
        page.goto(f"{console.url}{path}")
        expect(page.locator("main form[method=post], main .actions")).to_have_count(0)
    expect(page.get_by_role("link", name="Audit")).to_have_count(0)
    context.close()
    with console.client(console.people.viewer, PASSWORD) as client:
        refused = client.post("/rollouts/3/abort")
        assert refused.status_code == 403
        assert "expected role operator" in refused.text
        assert client.get("/audit").status_code == 403


def test_who_drifts_is_a_click_away(console: Console) -> None:
    """The overview says that a model drifts on three devices: its line leads to those three."""
    with console.client() as client:
        line = re.search(r'href="(/devices\?drift=[^"]+)">defects drifts on 3 devices', client.get("/").text)
        assert line is not None
        assert client.get(line[1]).text.count('<tr id="row-') == 3
        assert client.get(f"{line[1]}&state=failed").text.count('<tr id="row-') == 1
        assert "No device matches" in client.get("/devices?drift=nothing").text


def test_anonymous_sees_the_login_page_and_nothing_else(console: Console) -> None:
    """Whoever is not logged in is sent to the login page from everywhere, and streams are closed."""
    import httpx

    with httpx.Client(base_url=console.url, headers={"Accept": "text/html"}) as client:
        for path in PAGES.values():
            response = client.get(path)
            to = "" if path == "/" else f"?{urlencode({'to': path})}"
            assert (response.status_code, response.headers["location"]) == (303, f"/login{to}")
        part = client.get("/live/stream", headers={"HX-Request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login")


def test_logging_in_leads_to_the_page_that_was_asked_for(browser: Browser, console: Console) -> None:
    """At three in the morning a message links to a rollout; the session has ended, and a key sticks."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{console.url}/rollouts/2?status=failed&done=approve")
    for password in ("wrong", console.people.password):
        page.fill("#name", console.people.admin)
        page.fill("#password", password)
        page.click("button.primary")
    page.wait_for_url(f"{console.url}/rollouts/2?status=failed")
    context.close()


def test_a_quiet_page_renews_itself_each_minute(browser: Browser, console: Console) -> None:
    """Nothing happens, and so nothing is told; times grow all the same, and a silent device becomes late."""
    context = browser.new_context()
    page = context.new_page()
    page.clock.install()
    log_in(page, console)
    for path in ("/", "/devices", "/devices/cam-north-01", "/rollouts/3"):
        page.goto(f"{console.url}{path}")
        expect(page.locator("#stream[data-on]")).to_be_attached()
        with page.expect_response(lambda told: told.request.headers.get("hx-target", "").endswith("part")):
            page.clock.run_for(61_000)
    context.close()
