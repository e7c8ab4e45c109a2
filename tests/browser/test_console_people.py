"""People and tokens in the console: an administrator whose browser runs no scripts, and a viewer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect

from axe import axe
from console import Console, log_in, serve
from seed_fleet import PASSWORD, people


def test_people_and_tokens_are_managed_without_scripts(browser: Browser, tmp_path: Path) -> None:
    """A person is let in and locked out, a token made and revoked, and the log shows what was altered."""
    with serve(tmp_path / "data", people(tmp_path / "data")) as console:
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        log_in(page, console)
        page.goto(f"{console.url}/people")
        page.fill("#p-name", "rita")
        page.get_by_role("button", name="Add").click()
        expect(page.get_by_role("status")).to_contain_text("First password of rita")
        page.get_by_label("Role of rita").select_option("operator")
        page.get_by_role("row", name="rita").get_by_role("button", name="Set").click()
        expect(page.get_by_role("status")).to_contain_text("another role")
        expect(page.get_by_label("Role of rita")).to_have_value("operator")
        page.get_by_role("row", name="rita").get_by_role("button", name="Lock out…").click()
        page.get_by_role("dialog").get_by_role("button", name="Lock out").click()
        expect(page.get_by_role("row", name="rita")).to_contain_text("locked out")
        _token(console, page.context.new_page())
        context.close()
        _tampered(tmp_path / "data" / "kedge.db")
        context = browser.new_context()
        page = context.new_page()
        log_in(page, console)
        page.goto(f"{console.url}/audit")
        expect(page.get_by_role("alert")).to_contain_text("Entry 1: its content is not what was written")
        assert axe(page) == []
        context.close()


def _token(console: Console, page: Page) -> None:
    """Make a token wrongly, then rightly; use it; revoke it."""
    page.goto(f"{console.url}/people")
    page.fill("#t-name", "ci")
    page.fill("#t-scopes", "devices:read model=digits")
    page.get_by_role("button", name="Make a token").click()
    expect(page.get_by_role("alert")).to_contain_text("expected no models")
    expect(page.locator("#t-name")).to_have_value("ci")
    page.fill("#t-scopes", "devices:read label=site=north")
    page.get_by_role("button", name="Make a token").click()
    secret = page.get_by_role("status").locator("code").inner_text()
    header = {"Authorization": f"Bearer {secret}"}
    address = f"{console.url}/api/v1/devices"
    assert httpx.get(address, headers=header, trust_env=False).status_code == 200
    page.get_by_role("row", name="ci").get_by_role("button", name="Revoke…").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row", name="ci")).to_contain_text("revoked")
    assert httpx.get(address, headers=header, trust_env=False).status_code == 401


def _tampered(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE audit_entry SET actor = 'nobody' WHERE id = 1")
    connection.close()


def test_a_viewer_sees_tokens_of_their_own_and_no_people(browser: Browser, console: Console) -> None:
    """Vera makes a token to look with; there is nothing about others, and nothing above her role."""
    context = browser.new_context()
    page = context.new_page()
    log_in(page, console, "vera", PASSWORD)
    page.goto(f"{console.url}/people")
    expect(page.get_by_role("heading", name="Your tokens")).to_be_visible()
    expect(page.get_by_role("heading", name="People", exact=True)).to_have_count(0)
    assert page.locator("#t-role option").all_text_contents() == ["scopes instead", "viewer"]
    assert axe(page) == []
    context.close()
