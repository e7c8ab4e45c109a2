"""The server's signatures: what is made, what a restart finds, and what accidents can be mended."""

from __future__ import annotations

import shutil
import stat
import time
from pathlib import Path

import msgspec
import pytest

from disk_states import contents, restore, states_on_the_way
from fake_link import FakeBroker
from fleet.errors import TrustError
from fleet.ids import DeviceId, Digest
from fleet.wire.enrolment import ClaimToken
from named_bundles import named_bundle
from server.errors import NotFoundError, SettingsError
from server.services.trust.signing import SigningService
from trust_world import DAY, START, ManualClock, World

BUNDLE = named_bundle()
OTHER = msgspec.structs.replace(BUNDLE, version="2", release_counter=2)


def service(folder: Path, clock: ManualClock | None = None, passphrase: str = "") -> SigningService:
    return SigningService(folder / "keys", folder / "trust", clock or ManualClock(), passphrase)


def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    first = service(tmp_path)
    first.open()
    first.add_bundles([BUNDLE])
    before = contents(tmp_path)
    second = service(tmp_path)
    assert second.open() == []
    assert second.verify() == []
    assert second.bundles() == (BUNDLE,)
    assert contents(tmp_path) == before
    assert second.root_fingerprint() == first.root_fingerprint()


def test_the_claim_tokens_fingerprint_is_the_first_roots_for_ever(tmp_path: Path) -> None:
    signing = service(tmp_path)
    signing.open()
    claim = ClaimToken("secret", signing.root_fingerprint())
    signing.rotate("root")
    claim.check_root(signing.first_root())
    assert signing.root_fingerprint() == claim.root_fingerprint


def test_keys_are_the_servers_alone(tmp_path: Path) -> None:
    service(tmp_path).open()
    files = list((tmp_path / "keys").iterdir())
    assert sorted(f.name for f in files) == [
        f"{r}.pem" for r in ("director", "releases", "root", "snapshot", "targets", "timestamp")
    ]
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}


def test_keys_can_be_encrypted(tmp_path: Path) -> None:
    service(tmp_path, passphrase="open sesame").open()
    assert b"ENCRYPTED" in (tmp_path / "keys" / "root.pem").read_bytes()
    assert service(tmp_path, passphrase="open sesame").open() == []
    with pytest.raises(SettingsError, match="KEDGE_KEY_PASSPHRASE"):
        service(tmp_path, passphrase="wrong").open()


def test_what_is_half_through_its_life_is_signed_again(tmp_path: Path) -> None:
    clock = ManualClock()
    signing = service(tmp_path, clock)
    signing.open()
    versions = {row.role: row.version for row in signing.describe()}
    assert not signing.refresh()
    for days, role in ((4, "timestamp"), (16, "snapshot"), (91, "targets"), (183, "root")):
        clock.seconds = START + days * DAY
        assert signing.refresh()
        now = {row.role: row.version for row in signing.describe()}
        assert now[role] > versions[role]
        assert not signing.refresh()
    assert service(tmp_path, clock).open() == []


def test_a_release_never_changes(tmp_path: Path) -> None:
    signing = service(tmp_path)
    signing.open()
    assert signing.add_bundles([BUNDLE])
    assert not signing.add_bundles([BUNDLE])
    with pytest.raises(TrustError, match="another bundle already"):
        signing.add_bundles([msgspec.structs.replace(BUNDLE, digest=str(Digest.of(b"other")))])


def test_only_what_is_in_the_repository_is_assigned(tmp_path: Path) -> None:
    signing = service(tmp_path)
    signing.open()
    with pytest.raises(NotFoundError, match="not in the image repository"):
        signing.sign_assignment(
            device=DeviceId("d1"), rollout="r", version=1, bundles=[BUNDLE], activate_before=START
        )


def test_describe_tells_everything_about_each_role(tmp_path: Path) -> None:
    signing = service(tmp_path)
    signing.open()
    rows = {row.role: row for row in signing.describe()}
    assert list(rows) == ["root", "targets", "snapshot", "timestamp", "director", "releases"]
    assert all(len(row.keyids) == row.threshold == 1 for row in rows.values())
    assert rows["timestamp"].expires == "2027-01-22T08:00:00Z"
    assert rows["root"].key_file == str(tmp_path / "keys" / "root.pem")


ACCIDENTS = [
    "trust/timestamp.json",
    "trust/3.snapshot.json",
    "trust/1.targets.json",
    "trust/3.releases.json",
    "trust/versions",
    *(f"keys/{role}.pem" for role in ("targets", "snapshot", "timestamp", "director", "releases")),
]


@pytest.mark.parametrize("name", ACCIDENTS)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_accident_is_named_and_mended_and_devices_go_on(tmp_path: Path, name: str, damage: str) -> None:
    """An operator deletes a file, or a disk spoils it: the server names it, mends it, devices follow."""
    world = World(tmp_path, FakeBroker())
    first = world.server.release("1")
    second = world.server.release("2", counter=2, seed=2)
    device = world.device()
    device.accept(world.server.assignment("d1", [second]))
    path = tmp_path / "server" / name
    assert path.exists(), sorted(contents(tmp_path / "server"))
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-40] + b"\0" * 40)

    signing = service(tmp_path / "server", world.clock)
    problems = signing.open()
    assert name == "trust/versions" or any(str(path) in problem for problem in problems)
    assert signing.verify() == []
    world.server.signing = signing
    signing.add_bundles([first, second])
    world.server.publish_metadata()
    device.accept(world.server.assignment("d1", [second], version=2))
    assert {bundle.path for bundle in signing.bundles()} == {first.path, second.path}


def test_the_version_ledger_and_the_timestamp_are_lost_together(tmp_path: Path) -> None:
    """Nobody knows which timestamp devices have seen: a new key makes them forget it."""
    world = World(tmp_path, FakeBroker())
    bundle, device = world.server.release("1"), world.device()
    device.accept(world.server.assignment("d1", [bundle]))
    for name in ("versions", "timestamp.json"):
        (tmp_path / "server" / "trust" / name).unlink()
    world.server.signing = service(tmp_path / "server", world.clock)
    world.server.signing.open()
    world.server.publish_metadata()
    device.accept(world.server.assignment("d1", [bundle], version=2))


@pytest.mark.parametrize("name", ["trust/1.root.json", "trust/2.root.json", "keys/root.pem"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_what_only_a_backup_brings_back_is_named(tmp_path: Path, name: str, damage: str) -> None:
    """The root key, or a link of the root chain, is lost: the server says what to restore, and stops."""
    signing = service(tmp_path)
    signing.open()
    signing.rotate("targets")
    signing.rotate("snapshot")
    path = tmp_path / name
    path.unlink() if damage == "missing" else path.write_bytes(b"x")
    with pytest.raises(SettingsError, match=path.name):
        service(tmp_path).open()


def test_lost_metadata_beside_living_keys_is_no_first_start(tmp_path: Path) -> None:
    """The metadata folder is gone: making a new root would lock every device out, so the server refuses."""
    service(tmp_path).open()
    shutil.rmtree(tmp_path / "trust")
    with pytest.raises(SettingsError, match=r"1\.root\.json"):
        service(tmp_path).open()


def test_power_is_cut_during_the_first_start(tmp_path: Path) -> None:
    """The very first start is cut off after any of its writes: the next one ends it, or begins anew."""
    whole = tmp_path / "whole"
    service(whole).open()
    for count, state in enumerate(states_on_the_way({}, contents(whole), whole)):
        cut = restore(tmp_path / f"cut-{count}", state)
        again = service(cut)
        again.open()
        assert again.verify() == []
        assert again.file("1.root.json") == again.first_root()
        again.add_bundles([BUNDLE])


@pytest.mark.parametrize(
    "action", ["add", "timestamp", "snapshot", "targets", "director", "releases", "root"]
)
def test_power_is_cut_after_any_write(tmp_path: Path, action: str) -> None:
    """The server loses power after the n-th file of a release or a rotation, for every n: nothing is lost."""
    world = World(tmp_path / "w", FakeBroker())
    bundle, device = world.server.release("1"), world.device()
    device.accept(world.server.assignment("d1", [bundle]))
    home = tmp_path / "w" / "server"
    before, device_before = contents(home), contents(tmp_path / "w" / "d1")
    signing = world.server.signing
    signing.add_bundles([OTHER]) if action == "add" else signing.rotate(action)
    after = contents(home)
    for count, state in enumerate(states_on_the_way(before, after, home)):
        cut = restore(tmp_path / f"cut-{count}", state)
        again = service(cut, world.clock)
        again.open()
        assert bundle in again.bundles()
        assert again.verify() == []
        world.server.signing = again
        world.server.publish_metadata()
        for name, data in device_before.items():
            (tmp_path / "w" / "d1" / name).write_bytes(data)
        device.accept(world.server.assignment("d1", [bundle], version=count + 2))


def test_assignments_for_a_whole_fleet_are_signed_in_time(tmp_path: Path) -> None:
    """A rollout to 100,000 devices must not wait for the signer: at least 1000 assignments a second."""
    signing = service(tmp_path)
    signing.open()
    signing.add_bundles([BUNDLE])
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        for number in range(300):
            signing.sign_assignment(
                device=DeviceId(f"d{number}"), rollout="r", version=1, bundles=[BUNDLE], activate_before=START
            )
        rates.append(300 / (time.perf_counter() - began))
    assert max(rates) > 1000
