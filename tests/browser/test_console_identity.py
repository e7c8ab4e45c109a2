"""What an operator decides about devices: who is let in, who is thrown out, who wipes itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import httpx
import msgspec
from playwright.sync_api import Browser, Page, expect

from axe import axe
from console import Console, complaints, log_in, serve
from fleet.wire.enrolment import ClaimToken, EnrolReply, EnrolRequest, PendingReply
from seed_fleet import people
from sim_devices import TARGET, csr


def ask(console: Console, claim: str, name: str, pem: str) -> httpx.Response:
    """Ask to be enrolled, as a device does."""
    request = EnrolRequest(claim=ClaimToken.parse(claim).secret, csr_pem=pem, target=TARGET, name=name)
    body = msgspec.json.encode(request)
    return httpx.post(f"{console.url}/api/v1/enrol", content=body, timeout=30, trust_env=False)


def accessible(page: Page) -> None:
    """Check a page in light and in dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        assert axe(page) == [], scheme


def test_an_operator_lets_one_in_refuses_one_and_has_one_wiped(
    own_console: Console, browser: Browser
) -> None:
    """Two devices wait; one is known, one is not. A third is scrapped, and a fourth is stolen."""
    with own_console.client() as client:
        body = {"name": "dock", "quota": 2, "approval": True, "labels": {"site": "dock"}}
        claim = client.post("/api/v1/claims", json=body).json()["token"]
    known, odd = csr(), csr()
    shown = msgspec.json.decode(ask(own_console, claim, "dock-1", known).content, type=PendingReply)
    assert ask(own_console, claim, "odd-1", odd).status_code == 202

    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    heard = complaints(context)
    page = context.new_page()
    log_in(page, own_console)
    page.get_by_role("link", name="2 devices wait to be let in").click()
    waiting = page.locator("#waiting")
    expect(waiting.locator("tbody tr")).to_have_count(2)
    row = waiting.locator("tbody tr").filter(has_text="dock-1")
    for fact in (shown.fingerprint[:32], TARGET, "127.0.0.1", "dock", "site=dock"):
        expect(row).to_contain_text(fact)
    accessible(page)
    row.get_by_role("button", name="Approve…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(shown.fingerprint)
    accessible(page)
    dialog.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="let in")).to_be_visible()
    expect(waiting.locator("tbody tr")).to_have_count(1)
    waiting.get_by_role("button", name="Reject…").click()
    page.get_by_role("dialog").get_by_role("button", name="Reject", exact=True).click()
    expect(page.locator("#waiting")).to_have_count(0)
    msgspec.json.decode(ask(own_console, claim, "dock-1", known).content, type=EnrolReply)
    assert ask(own_console, claim, "odd-1", odd).status_code == 403

    page.goto(f"{own_console.url}/devices/dock-1")
    page.get_by_role("button", name="Decommission…").click()
    expect(page.get_by_role("dialog")).to_contain_text("wipe its keys")
    page.get_by_role("dialog").get_by_role("button", name="Decommission", exact=True).click()
    expect(page.get_by_text("has not said yet that it does")).to_be_visible()
    expect(page.get_by_role("button", name="Decommission…")).to_have_count(0)
    accessible(page)
    page.get_by_role("button", name="Revoke…").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke", exact=True).click()
    expect(page.locator(".head .badge")).to_have_text("revoked")
    expect(page.get_by_text("Shut out")).to_be_visible()
    accessible(page)
    context.close()
    assert heard == []


def test_who_only_looks_decides_nothing(own_console: Console) -> None:
    people = own_console.people
    with own_console.client() as client:
        claim = client.post("/api/v1/claims", json={"approval": True}).json()["token"]
        shown = msgspec.json.decode(ask(own_console, claim, "cam-9", csr()).content, type=PendingReply)
        wrong = client.post("/pending/cam-9/approve", data={"fingerprint": "0" * 64})
        assert wrong.status_code == 409
        assert client.post("/pending/cam-9/burn", data={"fingerprint": shown.fingerprint}).status_code == 404
    with own_console.client(people.viewer, people.viewer_password) as viewer:
        assert "takes an operator" in viewer.get("/devices").text
        for path, form in (
            ("/pending/cam-9/approve", {"fingerprint": shown.fingerprint}),
            ("/pending/cam-9/reject", {"fingerprint": shown.fingerprint}),
            ("/devices/cam-north-06/decommission", {}),
        ):
            assert viewer.post(path, data=form).status_code == 403


def test_the_first_device_of_a_fleet_can_be_let_in_from_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Nothing is enrolled yet, and still the overview says who waits; nothing covers the key to compare."""
    with serve(tmp_path / "data", people(tmp_path / "data")) as console:
        with console.client() as client:
            claim = client.post("/api/v1/claims", json={"approval": True}).json()["token"]
        shown = msgspec.json.decode(ask(console, claim, "first", csr()).content, type=PendingReply)
        context = browser.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
        page = context.new_page()
        log_in(page, console)
        expect(page.get_by_text("No device is enrolled yet")).to_be_visible()
        page.get_by_role("link", name="1 device waits to be let in").click()
        key = page.locator("#waiting code")
        expect(key).to_have_text(shown.fingerprint)
        boxes = [box for cell in page.locator("#waiting tbody tr > *").all() if (box := cell.bounding_box())]
        assert len(boxes) == 7
        for first, second in itertools.combinations(boxes, 2):
            apart_x = (
                first["x"] + first["width"] <= second["x"] or second["x"] + second["width"] <= first["x"]
            )
            apart_y = (
                first["y"] + first["height"] <= second["y"] or second["y"] + second["height"] <= first["y"]
            )
            assert apart_x or apart_y, (first, second)
        accessible(page)
        context.close()
