"""What the console says of devices' identities: certificates nobody renewed, and who is still let in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from server.console.views import devices, needs
from server.db.engine import Database
from server.db.identity_tables import IssuedCertificate
from server.db.migrate import upgrade
from server.db.tables import Device, DeviceModel, Refusal

NOW: Final = 1_800_000_000.0
DAY: Final = 86400.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Make an empty database."""
    made = Database(f"sqlite:///{tmp_path / 'kedge.db'}")
    upgrade(made)
    yield made
    made.close()


def certificate(begins: float, ends: float) -> str:
    """Return a certificate for that time, PEM."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    first, last = (dt.datetime.fromtimestamp(at, tz=dt.timezone.utc) for at in (begins, ends))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, first, last)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def enrolled(name: str, *, left: float, seen: float = 60.0) -> tuple[Device, IssuedCertificate]:
    """Return a device with a certificate for 30 days, of which so many seconds are left."""
    ends = NOW + left
    device = Device(
        id=name, target="laptop-x86", enrolled_at=NOW - 40 * DAY, online=True, last_seen_at=NOW - seen,
        certificate_pem=certificate(ends - 30 * DAY, ends),
    )  # fmt: skip
    serial = f"{hash(name) & 0xFFFFFF:x}"
    return device, IssuedCertificate(
        serial=serial, device_id=name, issuer="00", key_fingerprint=serial, not_after=ends
    )


def test_a_certificate_that_was_not_renewed_is_told_before_it_ends(database: Database) -> None:
    """HTTP is shut between a site and the server: its devices talk over MQTT until the day they cannot."""
    with database.write() as session:
        for name, left, seen in (
            ("well", 14 * DAY, 60.0),  # renewed at half of its life, which is tomorrow
            ("soon", 5 * DAY, 60.0),
            ("gone", -DAY, 60.0),
            ("away", -DAY, 30 * DAY),  # renews by itself when it is back
        ):
            device, issued = enrolled(name, left=left, seen=seen)
            session.add(device)
            session.flush()
            session.add(issued)
    with database.read() as session:
        told = [need for need in needs.current(session, NOW) if "certificate" in need.title]
        page = devices.page(session, "soon", NOW)
    assert [(need.title, need.tone) for need in told] == [
        ("2 devices have not renewed their certificates", "bad")
    ]
    assert told[0].detail.startswith("gone, soon · 1 ended")
    assert page is not None
    assert page.certificate is not None
    assert (page.certificate.until, page.certificate.overdue) == (NOW + 5 * DAY, True)


def test_who_is_revoked_and_still_let_in_comes_before_what_can_wait(database: Database) -> None:
    """Nothing watches over the broker: a revoked device goes on talking, and the overview says so first."""
    with database.write() as session:
        for name, at, shut_out in (("stolen", 600.0, None), ("sold", 600.0, 1.0), ("just-now", 5.0, None)):
            device, _ = enrolled(name, left=20 * DAY)
            device.revoked_at, device.shut_out_at = NOW - at, shut_out
            session.add(device)
        late, _ = enrolled("late", left=20 * DAY, seen=DAY / 2)
        late.online = False
        session.add(late)
    with database.read() as session:
        told = needs.current(session, NOW)
    assert [(need.tone, need.href) for need in told] == [
        ("sec", "/devices/stolen"),
        ("warn", "/devices/late"),
    ]


def test_a_device_that_refused_something_stands_out_whatever_else_it_does(database: Database) -> None:
    """It runs the newest model; that somebody sent it a forged chunk must not hide behind a green word."""
    with database.write() as session:
        for name in ("plain", "target"):
            device, _ = enrolled(name, left=20 * DAY)
            session.add(device)
            session.flush()
            session.add(
                DeviceModel(
                    device_id=name, model="digits", active="x", desired="x", state="committed", updated_at=NOW
                )
            )
        refusal = {
            "what": "chunk",
            "reason": "bad_digest",
            "detail": "",
            "time": NOW - 60,
            "received_at": NOW - 60,
        }
        session.add(Refusal(device_id="target", id="1", boot_id="b", monotonic=1.0, **refusal))
    with database.read() as session:
        every = devices.lines(session, NOW)
    assert devices.tally(every) == {"alarm": 1, "ok": 2}
    assert [line.id for line in devices.listing(every, {}).rows] == ["target", "plain"]
    assert [line.id for line in devices.listing(every, {"state": "alarm"}).rows] == ["target"]
