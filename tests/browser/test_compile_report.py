"""The report of a compilation in a browser: accessible, narrow, dark, on paper, and alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from axe import axe
from compiler.bundle.page import render
from report_facts import FACTS


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the page to a file, as people open it."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(render.as_html(FACTS))
    return path.as_uri()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a window."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def test_it_is_accessible_in_light_and_dark_and_opened_up(page: Page, report: str) -> None:
    """Somebody with a screen reader or weak eyes reads why an update was chosen."""
    page.goto(report)
    page.locator("summary").click()
    assert axe(page) == []
    page.emulate_media(color_scheme="dark")
    assert axe(page, "color-contrast", "link-in-text-block") == []


def test_it_asks_the_network_for_nothing_and_runs_nothing(page: Page, report: str) -> None:
    asked: list[str] = []
    dialogs: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def opened(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", opened)
    page.goto(report)
    assert asked == [report]
    assert dialogs == []


def test_nodes_are_filtered_by_the_unit_that_runs_them(page: Page, report: str) -> None:
    page.goto(report)
    rows = page.locator("#placement table").first.locator("tbody tr")
    expect(rows.locator("visible=true")).to_have_count(4)
    page.get_by_role("radio", name="cpu").check()
    expect(rows.locator("visible=true")).to_have_count(1)
    expect(rows.locator("visible=true")).to_contain_text("GELU")
    page.get_by_role("radio", name="accelerator").check()
    expect(rows.locator("visible=true")).to_have_count(2)


def test_it_fits_a_phone(browser: Browser, report: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(report)
    width: int = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    assert axe(page) == []
    context.close()


def test_on_paper_everything_is_shown_and_nothing_scrolls(page: Page, report: str) -> None:
    page.emulate_media(media="print")
    page.goto(report)
    expect(page.get_by_role("navigation")).to_be_hidden()
    hidden: int = page.evaluate(
        "[...document.querySelectorAll('.tall')].filter(x => x.scrollHeight > x.clientHeight + 1).length"
    )
    assert hidden == 0


def test_it_stands_where_pages_are_kept(report: str) -> None:
    assert Path(report.removeprefix("file://")).stat().st_size < 60_000
