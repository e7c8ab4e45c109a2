"""What devices and people write is text on every page, and revoked devices count nowhere."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Final

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from fleet.telemetry import varint
from fleet.wire import codec
from fleet.wire.messages import ExponentialHistogram, ModelReport
from server.app import create_app
from server.bootstrap import Runtime, build
from server.console.pages import error_page
from server.console.routes import handlers, template_config
from server.db.tables import (
    Action,
    Device,
    DeviceModel,
    EventRow,
    Refusal,
    Release,
    Report,
    Rollout,
    RolloutGroup,
)
from server.services.people.roles import SYSTEM, Role
from server.settings import Settings

EVIL: Final = "\"'><img src=x onerror=alert(1)>{{7*7}}</script><script>alert(2)</script>"
DIGEST: Final = f"sha256:{'a' * 64}"
PAGES: Final = (
    "/", "/devices", "/devices/evil", "/rollouts", "/rollouts/1", "/releases", "/live", "/offload", "/audit",
    "/rollouts/new", f"/devices?q={EVIL}&target={EVIL}", f"/rollouts/new?name={EVIL}",
)  # fmt: skip


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    made = build(Settings(data=tmp_path_factory.mktemp("hostile")))
    _write(made)
    yield made
    made.services.database.close()


@pytest.fixture(scope="module")
def client(runtime: Runtime) -> Iterator[TestClient[Litestar]]:
    app = create_app(
        runtime.services, console=handlers(), templates=template_config("test"), error_page=error_page
    )
    secret = runtime.services.accounts.tokens.add(SYSTEM, "looks", Role.ADMIN)[1]
    with TestClient(app, raise_server_exceptions=False) as found:
        found.headers.update({"Authorization": f"Bearer {secret}", "Accept": "text/html"})
        yield found


def _write(runtime: Runtime) -> None:
    now = runtime.services.clock.now()
    with runtime.services.database.write() as session:
        session.add(
            Device(
                id="evil", target="laptop-x86", labels={"site": EVIL}, enrolled_at=now, last_seen_at=now,
                agent_version=EVIL[:64], firmware={EVIL: EVIL}, gates=[EVIL], boot_id=EVIL, outbox_bytes=5,
                hello_at=now,
            )
        )  # fmt: skip
        session.add(Device(id="gone", target="laptop-x86", enrolled_at=now, revoked_at=now))
        session.add(Release(id=1, model=EVIL, version=EVIL, counter=1, created_at=now, created_by=EVIL))
        session.flush()
        session.add(
            DeviceModel(
                device_id="evil", model=EVIL, active=DIGEST, active_version=EVIL, previous=EVIL, desired=EVIL,
                state="canary", rollout=EVIL, updated_at=now,
            )
        )  # fmt: skip
        session.add(
            EventRow(
                device_id="evil", id="1", rollout=EVIL, model=EVIL, bundle=DIGEST, state="golden_check",
                reason=EVIL, detail=EVIL, measured={EVIL: 1.0}, boot_id="b", monotonic=1.0, time=now,
                received_at=now,
            )
        )  # fmt: skip
        session.add(
            Refusal(
                device_id="evil", id="1", what=EVIL[:64], reason=EVIL, detail=EVIL, boot_id="b",
                monotonic=1.0, time=now, received_at=now,
            )
        )  # fmt: skip
        session.add(
            Rollout(
                id=1, name=EVIL, release_id=1, model=EVIL, state="halted", reason=EVIL, created_by=EVIL,
                created_at=now, policy={"groups": [{"percent": 100.0}]}, group=0, selection={},
            )
        )  # fmt: skip
        session.flush()
        session.add(RolloutGroup(rollout_id=1, index=0, name=EVIL, state="error", size=1))
        session.flush()
        session.add(
            Action(
                rollout_id=1, group_index=0, device_id="evil", status="failed", step=EVIL, bundle=DIGEST,
                before="", reason=EVIL, detail=EVIL, measured={EVIL: 2.0}, created_at=now,
            )
        )  # fmt: skip
        for start, latency in ((now - 60, ExponentialHistogram()), (now - 30, _nonsense())):
            report = ModelReport(
                id="1", model=EVIL, bundle=DIGEST, boot_id="b", window_start=start, window_seconds=30.0,
                counters={"requests": 5, EVIL: 1}, drift={"ks_confidence": (1.0, 500)}, latency_ms=latency,
                confidence=varint.encode([1]),
            )  # fmt: skip
            session.add(
                Report(
                    device_id="evil", bundle=DIGEST, boot_id="b", window_start=start, window_seconds=30.0,
                    model=EVIL, requests=5, errors=0, body=codec.encode(report), received_at=now,
                )
            )  # fmt: skip


def _nonsense() -> ExponentialHistogram:
    return ExponentialHistogram(scale=99, offset=2**40, counts=b"\xff", zero=1)


@pytest.mark.parametrize("path", PAGES)
def test_hostile_text_is_shown_as_text(path: str, client: TestClient[Litestar]) -> None:
    """A captured device, and an operator with a grudge, put scripts into all that they may write."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text[:2000]
    assert "<img src=x" not in answer.text
    assert "<script>alert" not in answer.text
    assert "49</script>" not in html.unescape(answer.text)


def test_a_hostile_address_is_not_echoed(client: TestClient[Litestar]) -> None:
    """A link to a page that does not exist carries a script in its path."""
    answer = client.get(f"/nowhere/{EVIL}")
    assert answer.status_code == 404
    assert "<img src=x" not in answer.text


def test_a_revoked_device_is_no_part_of_the_fleet_any_more(client: TestClient[Litestar]) -> None:
    """One of two devices was revoked: the share that is up to date is of the other one alone."""
    assert "1 devices" not in client.get("/").text
    assert "1 device " in client.get("/").text


def test_page_numbers_beyond_reason_show_a_page(client: TestClient[Litestar]) -> None:
    """A script walks the pages and never stops counting."""
    for path in ("/devices", "/rollouts", "/audit"):
        for number in ("9" * 5000, "-1", "nan", "٣"):
            assert client.get(path, params={"page": number}).status_code == 200
