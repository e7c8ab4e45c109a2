"""Attacks on what reaches a device: bytes that never come, come slowly or in part, and stolen online keys.

All over a real mosquitto. What a device is told to trust is attacked in `test_trust_attacks`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from device_agent.adapters.mqtt import Credentials, MqttLink
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import MqttFetcher
from device_agent.errors import UnreachableError
from fleet.errors import TrustError, TrustReason
from fleet.ids import DeviceId, Digest
from fleet.trust import assignment
from fleet.trust.assignment import AssignedBundle
from fleet.trust.repository import signed_file
from fleet.trust.workflow import filename
from fleet.wire import topics
from fleet.wire.enrolment import BrokerAccess
from processes import wait_until
from real_transport import RealBroker
from relay import Relay
from server.services.trust.keys import KeyFolder
from server.services.trust.signing import SigningService
from trust_world import Device, World, chunk_digests


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RealBroker]:
    with contextlib.closing(RealBroker(tmp_path)) as made:
        yield made


@pytest.fixture
def world(broker: RealBroker, tmp_path: Path) -> World:
    return World(tmp_path, broker, patience=0.1)


def why(device: Device, data: bytes) -> TrustReason:
    """Return why the device refuses an assignment."""
    with pytest.raises(TrustError) as caught:
        device.accept(data)
    return caught.value.reason


def test_partial_bundle(world: World) -> None:
    """The broker withholds one chunk of a bundle: nothing of it is whole, so nothing of it is installed.

    What came is kept; when the server has put the chunk back, only that one travels.
    """
    bundle, device = world.server.release("1", size=900_000), world.device()
    accepted = device.accept(world.server.assignment("d1", [bundle])).targets[0]
    held_back = Digest.from_hex(chunk_digests(world.server.blobs, bundle)[-1])
    world.attacker.publish(topics.chunk(held_back), b"")
    with pytest.raises(UnreachableError):
        device.downloader.fetch(accepted)
    weights = [blob for blob, data in device.store.blobs.items() if len(data) >= 900_000]
    assert weights == []
    assert world.server.distribution.republish(held_back)
    took = device.downloader.fetch(accepted)
    assert took.received < 600_000
    assert any(len(data) >= 900_000 for data in device.store.blobs.values())


def test_drop_request(world: World) -> None:
    """The broker drops all metadata: the device cannot judge an assignment, so it follows none, and says so.

    It is no refusal: nobody has lied to it. When metadata is there again, the same assignment is followed.
    """
    bundle, device = world.server.release("1"), world.device()
    data = world.server.assignment("d1", [bundle])
    for name in world.server.signing.files():
        world.forge(name, b"")
    with pytest.raises(UnreachableError):
        device.accept(data)
    assert device.trust.assignment_version == 0
    world.server.publish_metadata_again()
    assert device.accept(data).targets == (bundle,)


def test_slow_retrieval(world: World, broker: RealBroker, tmp_path: Path) -> None:
    """Somebody on the line lets a byte through now and then: a file has its time, whatever keeps dripping."""
    bundle, device = world.server.release("1"), world.device()
    relay = Relay(broker.mosquitto.port)
    none = tmp_path / "none"
    link = MqttLink(
        "slow",
        BrokerAccess(url=f"mqtt://127.0.0.1:{relay.port}"),
        credentials=Credentials(none, none, none),
        will=None,
        on_change=lambda _up: None,
    )
    link.start()
    try:
        wait_until(lambda: link.connected, "the device is connected")
        slow = device.through(MqttFetcher(link, timeout=1.0, grace=0.1))
        relay.crawl.set()
        start = time.monotonic()
        with pytest.raises(UnreachableError):
            slow.refresh(world.clock.wall())
        assert time.monotonic() - start < 3.0
        relay.crawl.clear()
        wait_until(lambda: _refreshed(slow, world), "the line is free, and the device catches up")
        assert device.accept(world.server.assignment("d1", [bundle])).targets == (bundle,)
    finally:
        link.stop()
        relay.close()


def _refreshed(trust: TrustClient, world: World) -> bool:
    try:
        trust.refresh(world.clock.wall())
    except UnreachableError:
        return False
    return True


def test_stolen_online_keys_install_nothing_new(world: World) -> None:
    """A thief of snapshot, timestamp and director tries what they are good for.

    He cannot name a bundle, for targets and projects are others' keys; he cannot go back, for versions only
    rise. What he can is to hold everything still until his timestamp expires, and to assign what is signed.
    """
    old = world.server.release("1")
    world.device("other").accept(world.server.assignment("other", [old]))
    before = world.server.signing.files()
    new, device = world.server.release("2", counter=2, seed=2), world.device()
    device.accept(world.server.assignment("d1", [new]))
    keys = {role: _stolen(world, role) for role in ("snapshot", "timestamp", "director")}
    evil = msgspec.structs.replace(new, digest=str(Digest.of(b"evil")), version="3", release_counter=3)

    _publish_as_thief(world, keys, back_to=before)
    assert why(device, _assignment(world, [new], keys["director"])) == "rollback"
    world.server.publish_metadata_again()
    _publish_as_thief(world, keys, add=evil, ahead=2)
    assert why(device, _assignment(world, [evil], keys["director"])) == "bad_signature"


def test_after_new_online_keys_what_the_thief_has_signed_counts_no_more(world: World) -> None:
    """The server replaces the three keys in one evening; devices forget the thief's versions by then."""
    bundle, device = world.server.release("1"), world.device()
    device.accept(world.server.assignment("d1", [bundle]))
    keys = {role: _stolen(world, role) for role in ("snapshot", "timestamp", "director")}
    _publish_as_thief(world, keys, ahead=10_000)
    device.trust.refresh(world.clock.wall())
    for role in keys:
        world.server.signing.rotate(role)
    world.server.publish_metadata_again()
    assert why(device, _assignment(world, [bundle], keys["director"])) == "bad_signature"
    assert device.accept(world.server.assignment("d1", [bundle], version=8)).version == 8


def test_a_server_restored_from_an_old_backup(world: World) -> None:
    """The server's disk died, and its backup is a week old: to devices it looks like a rollback attack.

    The timestamp that a device holds, and signs for, bears the server's own signature: it goes beyond it.
    """
    first, device = world.server.release("1"), world.device()
    backup = world.folder / "backup"
    shutil.copytree(world.folder / "server" / "trust", backup)
    second = world.server.release("2", counter=2, seed=2)
    device.accept(world.server.assignment("d1", [second]))

    restored = SigningService(world.folder / "server" / "keys", backup, world.clock)
    restored.open()
    world.server.signing = restored
    world.server.publish_metadata_again()
    data = world.server.assignment("d1", [first], version=9, allow_rollback=True)
    assert why(device, data) == "rollback"
    assert restored.outrun(device.trust.held_timestamp())
    world.server.publish_metadata_again()
    assert device.accept(data).targets == (first,)


# --- the thief ------------------------------------------------------------------------------------------


def _stolen(world: World, role: str) -> CryptoSigner:
    key = KeyFolder(world.folder / "server" / "keys").load(role)
    assert key is not None
    return key


def _assignment(world: World, bundles: list[AssignedBundle], key: CryptoSigner) -> bytes:
    later = world.clock.wall() + timedelta(days=1)
    document = assignment.build(
        device=DeviceId("d1"),
        rollout="evil",
        version=7,
        bundles=bundles,
        activate_before=later,
        expires=later,
    )
    return signed_file(document, [key])


def _publish_as_thief(
    world: World,
    keys: dict[str, CryptoSigner],
    *,
    back_to: dict[str, bytes] | None = None,
    add: AssignedBundle | None = None,
    ahead: int = 1,
) -> None:
    """Publish a snapshot and a timestamp signed with the stolen keys.

    Args:
        world: where.
        keys: the stolen keys by role.
        back_to: the files of a moment whose targets the snapshot shall name.
        add: a bundle to add to the server's project, signed with the snapshot's key for want of a better.
        ahead: how far the versions jump.
    """
    files = dict(world.server.signing.files())
    image = world.server.signing.image()
    meta = dict(image.snapshot.meta)
    if back_to is not None:
        newest = max((n for n in back_to if n.endswith("snapshot.json")), key=lambda n: int(n.split(".")[0]))
        meta = dict(Metadata[Snapshot].from_bytes(back_to[newest]).signed.meta)
    if add is not None:
        role = next(r for r in image.files if r == "releases")
        part = Metadata[Targets].from_bytes(files[filename(role, image.files[role].version)]).signed
        part.version += 1
        part.targets[add.path] = assignment.entry(add)
        data = signed_file(part, [keys["snapshot"]])
        meta[filename(role)] = MetaFile.from_data(part.version, data, ["sha256"])
        world.forge(filename(role, part.version), data)
    later = world.clock.wall() + timedelta(days=1)
    snapshot = signed_file(
        Snapshot(version=image.snapshot.version + ahead, expires=later, meta=meta), [keys["snapshot"]]
    )
    number = image.snapshot.version + ahead
    timestamp = Timestamp(
        version=image.timestamp.version + ahead,
        expires=later,
        snapshot_meta=MetaFile.from_data(number, snapshot, ["sha256"]),
    )
    world.forge(filename("snapshot", number), snapshot)
    world.forge("timestamp.json", signed_file(timestamp, [keys["timestamp"]]))
