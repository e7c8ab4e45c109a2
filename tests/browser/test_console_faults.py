"""What goes wrong is told as a page to people and as a problem document to programs, never with internals."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Browser, expect

from console import Console, log_in

PAGE = {"Accept": "text/html"}


def test_an_unknown_address_is_a_page_for_people_and_a_document_for_programs(console: Console) -> None:
    """Somebody mistypes an address; a script does too."""
    with console.client() as client:
        shown = client.get("/nowhere")
        assert shown.status_code == 404
        assert "Page not found" in shown.text
        assert 'aria-label="Main"' in shown.text, "expected the console's frame, with its navigation"
        told = client.get("/api/v1/nowhere")
        assert (told.status_code, told.headers["content-type"]) == (404, "application/problem+json")
        assert client.get("/nowhere", headers={"Accept": "*/*"}).json()["status"] == 404
    anonymous = httpx.get(f"{console.url}/nowhere", headers=PAGE)
    assert anonymous.status_code == 404
    assert "Page not found" in anonymous.text
    assert "Devices" not in anonymous.text


def test_a_wrong_method_and_too_large_a_form_are_pages_too(console: Console) -> None:
    """A bookmark of a form's address, and a form with a megabyte too much."""
    with console.client() as client:
        wrong = client.get("/logout")
        assert (wrong.status_code, "Not possible here" in wrong.text) == (405, True)
        large = client.post("/rollouts/new", data={"name": "x" * 1_200_000})
        assert large.status_code == 413
        assert "more than the server takes" in large.text


def test_a_login_without_an_origin_is_refused_with_a_page(console: Console) -> None:
    """A privacy filter strips the Origin header; the page of the refusal once needed somebody logged in."""
    refused = httpx.post(f"{console.url}/login", data={"name": "admin", "password": "x"}, headers=PAGE)
    assert refused.status_code == 403
    assert "Not allowed" in refused.text
    assert 'href="/login"' in refused.text


@pytest.mark.parametrize("kept", [1, 3])
def test_a_chart_with_few_values_shows_them(kept: int, browser: Browser, console: Console) -> None:
    """A fleet has just begun to report: one window, and no line can be drawn through one point."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    log_in(page, console)
    page.goto(f"{console.url}/offload")
    canvas = page.locator("figure[aria-labelledby=share-title] canvas")
    expect(canvas).to_be_visible()
    page.evaluate(
        """kept => {
            const rows = [...document.querySelectorAll("#share-table tbody tr")];
            rows.forEach((row, i) => [...row.cells].slice(1).forEach((cell) => {
                cell.dataset.value = i % 5 === 0 && i < 5 * kept ? "40" : "";
            }));
            document.querySelector("figure[aria-labelledby=share-title] canvas").dataset.old = "1";
            document.dispatchEvent(new Event("kedge:theme"));
        }""",
        kept,
    )
    expect(page.locator("canvas[data-old]")).to_have_count(0)
    coloured = canvas.evaluate(
        """async (canvas) => {
            await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let seen = 0;
            for (let i = 0; i < data.length; i += 4) {
                const colour = data.slice(i, i + 3);
                if (data[i + 3] && Math.max(...colour) - Math.min(...colour) > 60) seen += 1;
            }
            return seen;
        }"""
    )
    assert coloured > 15 * kept
    context.close()


def test_the_navigation_counts_what_the_overview_lists_and_follows(
    browser: Browser, own_console: Console
) -> None:
    """An operator reads another page while a device rolls back: one number, everywhere, without reloading."""
    context = browser.new_context()
    page = context.new_page()
    log_in(page, own_console)
    count = page.locator("#needs")
    listed = page.locator(".needs > li")
    number = listed.count()
    assert number > 1
    expect(count).to_contain_text(str(number))
    page.goto(f"{own_console.url}/live")
    expect(page.locator("#stream[data-on]")).to_be_attached()
    expect(count).to_contain_text(str(number))
    with own_console.client() as client:
        assert client.post("/rollouts/3/pause").status_code == 303
    expect(count).to_contain_text(str(number + 1))
    context.close()
