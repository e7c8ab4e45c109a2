"""What an operator decides about devices: who is let in, who is thrown out, who wipes itself."""

from __future__ import annotations

import itertools
import re
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


def test_several_are_let_in_together_after_a_page_that_names_them(desk: Console, browser: Browser) -> None:
    """A pallet of devices is unpacked: two are let in at once, of two more a colleague has decided on one."""
    with desk.client() as client:
        claim = client.post("/api/v1/claims", json={"quota": 4, "approval": True}).json()["token"]
        keys = {name: csr() for name in ("box-1", "box-2", "box-3", "box-4")}
        for name, pem in keys.items():
            assert ask(desk, claim, name, pem).status_code == 202
        context = browser.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
        page = context.new_page()
        log_in(page, desk)
        page.goto(f"{desk.url}/devices")
        page.get_by_role("button", name="Approve chosen…").click()
        expect(page.get_by_role("heading", name="No device is chosen")).to_be_visible()
        page.get_by_role("link", name="Back to the devices").click()
        page.get_by_role("link", name="Choose all 4").press("Enter")
        expect(page.locator("#waiting input:checked")).to_have_count(4)
        page.get_by_role("checkbox", name="box-3").press("Space")
        page.get_by_role("checkbox", name="box-4").press("Space")
        page.get_by_role("button", name="Approve chosen…").press("Enter")
        expect(page.get_by_role("heading", name="Let these 2 devices in?")).to_be_visible()
        accessible(page)
        page.get_by_role("button", name="Approve 2 devices").press("Enter")
        expect(page.get_by_role("status").filter(has_text="are let in")).to_be_visible()
        expect(page.locator("#waiting tbody tr")).to_have_count(2)
        context.close()
        for name in ("box-1", "box-2"):
            assert ask(desk, claim, name, keys[name]).status_code == 201
            assert audited(client, f"device {name}").count("device.approved") == 1

        # as a browser without scripts does it
        ticked = re.findall(r'value="([0-9a-f]{64}:box-\d)" checked', client.get("/devices?chosen=all").text)
        assert [value.rpartition(":")[2] for value in ticked] == ["box-3", "box-4"]
        form = {"decision": "reject", "chosen": ticked}
        assert "Reject these 2 devices?" in client.post("/pending", data=form).text
        assert ask(desk, claim, "box-3", keys["box-3"]).status_code == 202, "asking decides nothing"
        alone = {"fingerprint": ticked[0].partition(":")[0]}
        assert client.post("/pending/box-3/approve", data=alone).status_code == 303
        assert "1 of those chosen does not wait any more" in client.post("/pending", data=form).text
        partly = client.post("/pending", data={**form, "sure": "1"})
        assert partly.status_code == 409
        assert "approved by admin already" in partly.text
        assert "1 is rejected, 1 is not" in partly.text
        assert ask(desk, claim, "box-4", keys["box-4"]).status_code == 403
        assert client.post("/pending", data={"decision": "burn"}).status_code == 422


def audited(client: httpx.Client, subject: str) -> list[str]:
    """Return what was done to a subject."""
    found = client.get("/api/v1/audit").json()
    return [entry["action"] for entry in found if entry["subject"] == subject]


def test_labels_are_changed_on_a_devices_page(desk: Console, browser: Browser) -> None:
    """A camera moves to another line; a colleague relabels it in between, and neither change is lost."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page = context.new_page()
    log_in(page, desk)
    page.goto(f"{desk.url}/devices/cam-north-06")
    page.locator("#labels summary").press("Enter")
    box = page.get_by_label("One key=value per line")
    expect(box).to_have_value("line=4\nsite=north\n")
    accessible(page)
    box.fill("line=5\nsite north")
    with desk.client() as client:
        body = {"labels": {"line": "4", "site": "east"}}
        assert client.put("/api/v1/devices/cam-north-06/labels", json=body).status_code == 200
        expect(page.get_by_role("link", name="site=east")).to_be_visible()
        expect(box).to_have_value("line=5\nsite north")
        page.get_by_role("button", name="Save labels").click()
        expect(page.get_by_role("alert")).to_have_text("label: expected key=value, got 'site north'")
        assert (
            client.post("/devices/cam-north-06/labels", data={"labels": "a=b", "seen": ""}).status_code == 409
        )
        box.fill("line=5\n\nsite=east")
        page.get_by_role("button", name="Save labels").click()
        expect(page.get_by_role("status").filter(has_text="labels are changed")).to_be_visible()
        page.get_by_role("link", name="line=5").click()
        expect(page.locator("tbody tr[id]")).to_have_count(1)
        assert audited(client, "device cam-north-06")[:2] == ["device.label", "device.label"]
    context.close()


def test_who_only_looks_decides_nothing(desk: Console) -> None:
    people = desk.people
    with desk.client() as client:
        claim = client.post("/api/v1/claims", json={"approval": True}).json()["token"]
        shown = msgspec.json.decode(ask(desk, claim, "cam-9", csr()).content, type=PendingReply)
        wrong = client.post("/pending/cam-9/approve", data={"fingerprint": "0" * 64})
        assert wrong.status_code == 409
        assert client.post("/pending/cam-9/burn", data={"fingerprint": shown.fingerprint}).status_code == 404
    with desk.client(people.viewer, people.viewer_password) as viewer:
        assert "takes an operator" in viewer.get("/devices").text
        assert "Change labels" not in viewer.get("/devices/cam-north-06").text
        for path, form in (
            ("/pending/cam-9/approve", {"fingerprint": shown.fingerprint}),
            ("/pending/cam-9/reject", {"fingerprint": shown.fingerprint}),
            ("/devices/cam-north-06/decommission", {}),
            ("/devices/cam-north-06/labels", {"labels": "a=b"}),
            ("/pending", {"decision": "approve", "chosen": f"{shown.fingerprint}:cam-9", "sure": "1"}),
        ):
            assert viewer.post(path, data=form).status_code == 403
    with desk.client() as client:
        refused = client.post("/pending/cam-9/reject", data={"fingerprint": shown.fingerprint})
        assert refused.status_code == 303


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
