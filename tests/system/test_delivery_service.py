"""What the server wants on the broker, what it frees, and the terms that reach a device's assignment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import Targets

from fleet.bundle.manifest import Bundle
from fleet.ids import Digest
from fleet.rollout.plan import GroupSpec, Policy
from fleet.rollout.states import Move
from fleet.trust import metadata_set
from fleet.trust.delivery import Delivery
from server.adapters.blobs_folder import FolderBlobStore
from server.db.tables import DeviceAssignment, DeviceModel
from server.errors import InvalidError
from server.services.director.wanted import DatabaseLedger, Wanted
from server.services.people.roles import SYSTEM
from server.services.releases.garbage import Garbage
from server.services.rollouts.candidates import Selection
from server_parts import Parts, parts

DAY = 86400.0


@pytest.fixture
def kedge(tmp_path: Path) -> Iterator[Parts]:
    made = parts(tmp_path)
    yield made
    made.database.close()


def wanted(kedge: Parts) -> list[str]:
    return [parcel.name.split("/")[2] for parcel in Wanted(kedge.database, kedge.signing).parcels()]


def has_it(kedge: Parts, device: str) -> None:
    with kedge.database.write() as session:
        row = session.get_one(DeviceModel, (device, "digits"))
        row.active = row.desired
        session.add(row)


def test_rollouts_come_first_then_what_devices_lack_then_the_newest(kedge: Parts) -> None:
    kedge.add_devices("d1", "d2")
    first, second = kedge.release("v1"), kedge.release("v2")
    kedge.release("v3")
    assert wanted(kedge) == ["v3"]
    aborted = kedge.roll_out(first)
    assert wanted(kedge) == ["v1", "v3"]
    for device in ("d1", "d2"):
        has_it(kedge, device)
    kedge.rollouts.command(SYSTEM, aborted, Move.ABORT)
    kedge.roll_out(second, 1)
    assert wanted(kedge) == ["v2", "v1", "v3"]


def test_the_ledger_outlives_the_server(kedge: Parts) -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    ledger = DatabaseLedger(kedge.database, kedge.clock)
    ledger.add(one)
    ledger.add(one)
    ledger.add(two)
    ledger.remove(one)
    ledger.remove(one)
    assert DatabaseLedger(kedge.database, kedge.clock).indexes() == [two]


# --- what nothing names is freed -----------------------------------------------------------------------


def test_only_old_uploads_that_nothing_names_are_freed(kedge: Parts) -> None:
    blobs = FolderBlobStore(kedge.folder / "blobs")
    garbage = Garbage(kedge.database, kedge.clock, kedge.audit, blobs)
    release = kedge.release("v1")
    orphan, young = Digest.of(b"orphan"), Digest.of(b"young")
    kedge.releases.put_blob(orphan, [b"orphan"])
    kedge.clock.seconds += 8 * DAY
    kedge.releases.put_blob(young, [b"young"])
    assert garbage.collect(SYSTEM, 7 * DAY, dry_run=True) == (1, 6)
    assert blobs.has(orphan)
    assert garbage.collect(SYSTEM, 7 * DAY) == (1, 6)
    assert not blobs.has(orphan)
    assert blobs.has(young)
    for row in kedge.releases.bundles(release):
        Bundle(Digest(row.digest), blobs.read).verify()
        assert blobs.has(Digest(row.index_digest))
    assert garbage.collect(SYSTEM, 7 * DAY) == (0, 0)


def test_an_upload_that_is_asked_about_again_is_not_freed(kedge: Parts) -> None:
    """`kedge publish` asks which files it need not send: from then on they are about to be named."""
    blobs = FolderBlobStore(kedge.folder / "blobs")
    garbage = Garbage(kedge.database, kedge.clock, kedge.audit, blobs)
    kedge.releases.put_blob(Digest.of(b"again"), [b"again"])
    kedge.clock.seconds += 8 * DAY
    assert kedge.releases.has_blob(Digest.of(b"again"))
    assert garbage.collect(SYSTEM, 7 * DAY) == (0, 0)


def test_what_a_withdrawn_release_alone_needed_is_freed(kedge: Parts) -> None:
    blobs = FolderBlobStore(kedge.folder / "blobs")
    garbage = Garbage(kedge.database, kedge.clock, kedge.audit, blobs)
    bad, good = kedge.release("bad"), kedge.release("good")
    (row,) = kedge.releases.bundles(bad)
    withdraw(kedge, bad)
    kedge.clock.seconds += 8 * DAY
    assert garbage.collect(SYSTEM, 7 * DAY).blobs >= 2
    assert not blobs.has(Digest(row.digest))
    for kept in kedge.releases.bundles(good):
        Bundle(Digest(kept.digest), blobs.read).verify()


def withdraw(kedge: Parts, release: int) -> None:
    with kedge.database.write() as session:
        row = kedge.releases.get(release)
        row.withdrawn_at = kedge.clock.now()
        session.add(row)


@pytest.mark.parametrize("age", [0.0, 3599.0, float("nan"), float("inf")])
def test_what_may_still_be_on_its_way_in_is_never_freed(kedge: Parts, age: float) -> None:
    garbage = Garbage(kedge.database, kedge.clock, kedge.audit, FolderBlobStore(kedge.folder / "blobs"))
    with pytest.raises(InvalidError, match="older_than"):
        garbage.collect(SYSTEM, age)


# --- the terms of a group ------------------------------------------------------------------------------


def test_a_groups_limits_stand_in_its_devices_signed_assignments(kedge: Parts) -> None:
    kedge.add_devices("d1", "d2", "d3")
    release = kedge.release("v1")
    groups = (GroupSpec(count=1, rate=500_000, jitter=60.0), GroupSpec(percent=100.0))
    kedge.rollouts.create(
        SYSTEM, release_id=release, selection=Selection(), policy=Policy(groups=groups), approve=True
    )
    kedge.signer.sign_pending()
    with kedge.database.read() as session:
        rows = [row for name in ("d1", "d2", "d3") if (row := session.get(DeviceAssignment, name))]
    (row,) = rows
    assert terms(row.document) == {"rate": 500_000, "jitter": 60}
    assert (row.rate, row.jitter) == (500_000, 60.0)
    with kedge.database.write() as session:
        kedge.assignments.sign_all(session)
    kedge.signer.sign_pending()
    with kedge.database.read() as session:
        again = session.get_one(DeviceAssignment, row.device_id)
    assert again.version > row.version
    assert terms(again.document) == {"rate": 500_000, "jitter": 60}


def test_a_group_without_limits_adds_not_a_byte(kedge: Parts) -> None:
    kedge.add_devices("d1")
    kedge.roll_out(kedge.release("v1"))
    kedge.signer.sign_pending()
    with kedge.database.read() as session:
        assert terms(session.get_one(DeviceAssignment, "d1").document) is None


def terms(document: bytes) -> object:
    fields = metadata_set.parse(Targets, document, "assignment").signed.unrecognized_fields
    return fields["x-kedge"].get("delivery")


def test_the_defaults_are_no_limits() -> None:
    assert Delivery() == GroupSpec(count=1).delivery
