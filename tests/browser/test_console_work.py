"""What operators do: find, act by keyboard alone, follow what happens, plan a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from console import PATIENCE_MS, Console, complaints, log_in, serve
from seed_fleet import people


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a page of its own, that must not complain."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    heard = complaints(context)
    yield context.new_page()
    context.close()
    assert heard == []


def ready(page: Page) -> None:
    """Wait until the page's scripts run and its stream is open."""
    expect(page.locator("#stream[data-on]")).to_be_attached()


def tab_to(page: Page, text: str, most: int = 60) -> None:
    """Press Tab until the focused element says `text`, as somebody without a mouse would."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == text:
            return
    pytest.fail(f"no way to {text!r} with {most} presses of Tab")


def test_keyboard_alone_reaches_a_device_and_aborts_a_rollout(own_console: Console, page: Page) -> None:
    """The mouse is broken and a rollout goes wrong: find the device, follow it to its rollout, abort."""
    page.goto(f"{own_console.url}/login")
    page.keyboard.type(own_console.people.admin)
    page.keyboard.press("Tab")
    page.keyboard.type(own_console.people.password)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    ready(page)
    page.keyboard.press("/")
    page.keyboard.type("cam-north-06")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    ready(page)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="cam-north-06")).to_be_visible()

    tab_to(page, "Rollout 3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="defects 2.2.0")).to_be_visible()
    tab_to(page, "Abort…")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("This cannot be undone")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Enter")
    tab_to(page, "Abort", most=4)
    page.keyboard.press("Enter")
    expect(page.locator(".head .badge")).to_have_text("aborted")
    expect(page.get_by_role("status").filter(has_text="The rollout is aborted.")).to_be_visible()
    expect(page.get_by_role("button", name="Pause…")).to_have_count(0)


def test_open_pages_follow_what_happens(own_console: Console, page: Page) -> None:
    """One operator pauses a rollout; another's open page, and the live view, show it without a reload."""
    log_in(page, own_console)
    page.goto(f"{own_console.url}/rollouts/3")
    live = page.context.new_page()
    live.goto(f"{own_console.url}/live?topic=rollout")
    ready(page)
    ready(live)
    page.evaluate("window.notReloaded = true")
    with own_console.client() as client:
        assert client.post("/rollouts/3/pause").status_code == 303
    expect(page.locator(".head .badge")).to_have_text("paused")
    expect(page.get_by_role("button", name="Resume…")).to_be_visible()
    assert page.evaluate("window.notReloaded") is True
    newest = live.locator("#happenings li").first
    expect(newest).to_contain_text("rollout 3 paused (by admin)")


def test_live_view_can_be_paused(own_console: Console, page: Page) -> None:
    """Too much scrolls by: a press stops it, what is missed is counted, another press shows it."""
    log_in(page, own_console)
    page.goto(f"{own_console.url}/live?topic=rollout")
    ready(page)
    before = page.locator("#happenings li").count()
    page.get_by_role("button", name="Pause").click()
    with own_console.client() as client:
        assert client.post("/rollouts/3/pause").status_code == 303
    button = page.get_by_role("button", name="Show 1 new")
    expect(button).to_be_visible()
    assert page.locator("#happenings li").count() == before
    button.click()
    expect(page.locator("#happenings li").first).to_contain_text("rollout 3")
    expect(page.locator("#happenings li")).to_have_count(before + 1)


def test_an_open_table_stays_open_when_its_page_changes(own_console: Console, page: Page) -> None:
    """Somebody reads a chart's table, and holds the focus, while the page renews itself around them."""
    log_in(page, own_console)
    ready(page)
    summary = page.locator("#adoption-defects-details summary")
    summary.click()
    expect(page.locator("#adoption-defects-table")).to_be_visible()
    with own_console.client() as client:
        assert client.post("/rollouts/3/pause").status_code == 303
    expect(page.locator(".needs").get_by_text("Rollout 3 paused")).to_be_visible()
    expect(page.locator("#adoption-defects-table")).to_be_visible()
    expect(page.locator("figure.chart canvas")).to_be_visible()
    expect(summary).to_be_focused()


def test_new_rollout_previews_before_it_begins(own_console: Console, page: Page) -> None:
    """A rollout is planned with its reach in view: narrower labels, fewer devices, mistakes told in words."""
    log_in(page, own_console)
    with own_console.client() as client:
        client.post("/rollouts/3/abort")
    page.goto(f"{own_console.url}/rollouts/new")
    ready(page)
    page.select_option("#release", label="defects 2.2.0")
    preview = page.locator("#preview")
    expect(preview.locator(".big")).to_be_visible()
    everyone = int(preview.locator(".big").inner_text())
    page.fill("#labels", "site=north")
    expect(preview.locator(".big")).not_to_have_text(str(everyone))
    assert int(preview.locator(".big").inner_text()) < everyone
    page.fill("#groups", "1,many")
    expect(preview.get_by_role("alert")).to_contain_text("expected a count or a percentage")
    page.fill("#groups", "1,100%")
    expect(preview.locator(".big")).to_be_visible()
    page.get_by_role("button", name="Create, approve later").click()
    expect(page.locator(".head .badge")).to_have_text("waits for approval")
    expect(page.get_by_role("button", name="Approve…")).to_be_visible()


def test_filters_stand_in_the_url(console: Console, page: Page) -> None:
    """A filtered and sorted list is a link that a colleague opens to the same view."""
    log_in(page, console)
    page.goto(f"{console.url}/devices")
    page.get_by_role("link", name="Late 2").click()
    page.get_by_role("link", name="Heard of").click()
    assert page.url.endswith("/devices?state=late&sort=seen")
    expect(page.locator("tbody tr th")).to_have_text(["cam-south-03", "cam-south-08"])
    page.select_option("#f-target", "coral-usb")
    expect(page.locator("tbody tr th")).to_have_text(["cam-south-08"])
    page.fill("#f-q", "cam-north")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No device matches")).to_be_visible()


def test_ending_the_session_ends_an_open_page(own_console: Console, page: Page) -> None:
    """Logged out in one window: the other does not go on showing the fleet."""
    log_in(page, own_console)
    other = page.context.new_page()
    other.goto(f"{own_console.url}/rollouts/3")
    ready(other)
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login*")
    other.locator(".crumb").click()
    other.wait_for_url("**/login**")


def test_empty_pages_say_what_to_do_next(page: Page, tmp_path: Path) -> None:
    """The server was started a minute ago: every page names the command that fills it."""
    with serve(tmp_path / "empty", people(tmp_path / "empty")) as console:
        log_in(page, console)
        for path, command in (
            ("/", f"kedge agent enroll --server {console.url} --claim TOKEN"),
            ("/devices", "kedge device claim"),
            ("/releases", "kedge publish"),
            ("/rollouts", "kedge rollout create"),
            ("/rollouts/new", "kedge compile"),
            ("/offload", "kedge device flush"),
        ):
            page.goto(f"{console.url}{path}")
            expect(page.locator(".empty pre").first).to_contain_text(command)
        page.goto(f"{console.url}/live")
        expect(page.get_by_text("Lines appear here as devices report")).to_be_visible()
        # Else the open stream's end, with the server, would be a complaint.
        page.goto("about:blank")
