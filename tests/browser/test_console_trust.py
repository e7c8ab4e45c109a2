"""The Trust page when something needs a person: an expiry that comes near, a release that waits."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ViewportSize, expect
from securesystemslib.signer import CryptoSigner

from axe import axe
from console import Console, log_in, serve
from fleet.ids import Digest
from project_parts import next_targets, project, targets_key, utc
from seed_fleet import people
from server.adapters.clock import SystemClock
from server.db.engine import Database
from server.db.tables import BundleRow, Device, Release, ReleaseBundle
from server.services.trust.signing import SigningService
from server.settings import Settings


def hand_over(data: Path) -> None:
    """Have people sign targets, for ten days, and a CI's two keys the model kws, of which a release waits."""
    settings = Settings(data=data)
    signing = SigningService(settings.keys, settings.trust, SystemClock())
    signing.open()
    ci = project("vision", *(CryptoSigner.generate_ed25519() for _ in range(2)), threshold=2, model="kws")
    before = signing.file("1.targets.json") or b""
    signing.adopt(next_targets(before, [targets_key(data)], ci, now=utc(time.time()), days=10))
    for role in ("root", "targets"):
        (settings.keys / f"{role}.pem").unlink()
        (settings.keys / f"{role}.offline").touch()
    digest, database = str(Digest.of(b"kws")), Database(settings.database_url)
    with database.write() as session:
        row = {"manifest_size": 1, "index_digest": digest, "index_size": 1, "device_bytes": 2}
        session.add(
            BundleRow(digest=digest, model="kws", target="laptop-x86", precision="int8", created_at=1, **row)
        )
        release = Release(
            model="kws", version="7", counter=7, created_by="ci", created_at=1, project="vision"
        )
        session.add_all((release, Device(id="cam-1", target="laptop-x86", enrolled_at=time.time())))
        session.flush()
        session.add(ReleaseBundle(release_id=release.id or 0, target="laptop-x86", bundle_digest=digest))
    database.close()


@pytest.fixture
def handed_over(browser: Browser, tmp_path: Path) -> Iterator[Console]:
    """Serve a fleet whose root and targets are with people."""
    del browser  # first, so that a missing chromium skips before a server starts
    data = tmp_path / "data"
    known = people(data)
    hand_over(data)
    with serve(data, known) as running:
        yield running


def test_what_people_must_sign_is_shown_with_what_to_do(browser: Browser, handed_over: Console) -> None:
    """Targets expires in ten days and a release waits: the overview says so, and leads to what to do."""
    context = browser.new_context(viewport=ViewportSize(width=1440, height=900), reduced_motion="reduce")
    page = context.new_page()
    log_in(page, handed_over)
    page.goto(f"{handed_over.url}/trust")
    main = page.locator("main")
    expect(main).to_contain_text("the server cannot sign it")
    expect(main).to_contain_text("kedge keys fetch, extend, sign, upload")
    expect(main).to_contain_text("kws 7 waits for 2 signatures of vision")
    expect(main).to_contain_text("0 of 2 signatures are there")
    expect(main).to_contain_text("people, offline")
    expect(main.get_by_role("row", name="vision")).to_contain_text(re.compile(r"2 of 2\s*key [0-9a-f]{8}"))
    expect(main).not_to_contain_text("Root and targets are signed by this server")
    assert axe(page) == []
    page.emulate_media(color_scheme="dark")
    assert axe(page, "color-contrast", "link-in-text-block") == []
    page.set_viewport_size(ViewportSize(width=360, height=740))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    with handed_over.client() as client:
        assert "kws 7 waits" in client.get("/").text
    context.close()
