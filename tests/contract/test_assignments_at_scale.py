"""Signing assignments in batches: nothing that changes meanwhile is lost, and a new key reaches everybody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from fleet.ids import DeviceId
from fleet.wire import topics
from server.db.tables import BundleRow, Device, DeviceAssignment
from server.services.director.assignments import RENEW_SECONDS
from server.services.director.signing import AssignmentSigner
from server.services.trust.signing import SigningService
from server_parts import Parts, parts


class Meanwhile(SigningService):
    """The server's signatures, with something that happens just before the first."""

    happens: Callable[[], None] | None = None

    def sign_assignment(self, **terms: Any) -> bytes:  # noqa: ANN401 - whatever the service takes
        """Let it happen, once, and sign."""
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        return super().sign_assignment(**terms)


@pytest.fixture
def kedge(tmp_path: Path) -> Parts:
    return parts(tmp_path)


def published(kedge: Parts, device: str) -> dict[str, Any]:
    """Publish everything; return what the device is told."""
    while kedge.publish_assignments():
        pass
    found: dict[str, Any] = json.loads(kedge.broker.retained[topics.assignment(DeviceId(device))])
    return found


def want(kedge: Parts, device: str, release: int) -> None:
    """Have a device run a release."""
    bundle = kedge.releases.bundles(release)[0]
    with kedge.database.write() as session:
        kedge.assignments.want(
            session, device, bundle.model, bundle.digest, release, rollout=1, activate_seconds=60.0
        )


def test_what_changes_while_it_is_signed_is_signed_again(kedge: Parts, tmp_path: Path) -> None:
    """Somebody rolls a second release out in the moment in which the first one's assignment is signed."""
    kedge.add_devices("dev-a")
    first, second = kedge.release("v1"), kedge.release("v2")
    signing = Meanwhile(tmp_path / "keys", tmp_path / "trust", kedge.clock)
    signing.open()
    racing = AssignmentSigner(kedge.database, kedge.clock, signing, kedge.assignments)
    signing.happens = lambda: want(kedge, "dev-a", second)
    want(kedge, "dev-a", first)
    assert racing.sign_pending() == 1
    with kedge.database.read() as session:
        row = session.exec(select(DeviceAssignment)).one()
    assert (row.stale, row.version, row.document) == (True, 0, b"")
    document = published(kedge, "dev-a")["signed"]
    assert document["version"] == 1
    assert [path.split("/")[2] for path in document["targets"]] == ["v2"]


def test_a_new_directors_key_reaches_every_device(kedge: Parts) -> None:
    """Those in a drawer too: what the broker keeps for them must not look forged when they come back."""
    names = [f"dev-{number}" for number in range(3)]
    kedge.add_devices(*names, "dev-gone")
    release = kedge.release("v1")
    for name in (*names, "dev-gone"):
        want(kedge, name, release)
    before = {name: published(kedge, name) for name in (*names, "dev-gone")}
    with kedge.database.write() as session:
        gone = session.get(Device, "dev-gone")
        assert gone is not None
        gone.revoked_at = kedge.clock.now()
        session.add(gone)
    kedge.signing.rotate("director")
    with kedge.database.write() as session:
        kedge.assignments.sign_all(session)
    keyid = kedge.signing.image().targets.get_delegated_role("director").keyids[0]
    for name in names:
        after = published(kedge, name)
        assert [x["keyid"] for x in after["signatures"]] == [keyid]
        assert after["signed"]["version"] == before[name]["signed"]["version"] + 1
        assert after["signed"]["targets"] == before[name]["signed"]["targets"]
    assert published(kedge, "dev-gone") == before["dev-gone"]


def test_devices_that_were_assigned_something_at_once_are_not_renewed_at_once(kedge: Parts) -> None:
    """Two hundred devices got the same release in one evening; their renewals spread over a week."""
    names = [f"dev-{number:03}" for number in range(200)]
    kedge.add_devices(*names)
    with kedge.database.write() as session:
        for device in session.exec(select(Device)):
            device.online = True
            session.add(device)
    release = kedge.release("v1")
    with kedge.database.write() as session:
        bundle = session.exec(select(BundleRow)).one()
        for name in names:
            kedge.assignments.want(
                session, name, "digits", bundle.digest, release, rollout=1, activate_seconds=60.0
            )
    while kedge.signer.sign_pending():
        pass
    kedge.clock.seconds += RENEW_SECONDS - 60.0
    assert kedge.renew() == 0
    days = []
    for _ in range(8):
        kedge.clock.seconds += 86400.0
        days.append(kedge.renew())
        while kedge.signer.sign_pending():
            pass
    assert sum(days) == len(names)
    assert max(days) < len(names) / 3
