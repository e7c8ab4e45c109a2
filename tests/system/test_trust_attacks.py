"""Attacks on what a device trusts, each told as a story, over a broker in memory and over a real mosquitto.

The attacker owns the broker: every forged file or message is published by a connection that may publish
everywhere. The list is Uptane's (Standard 2.1, "Threats"), and what a stolen key adds to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Timestamp

from fake_link import FakeBroker
from fleet.errors import BundleError, TrustError, TrustReason
from fleet.ids import DeviceId, Digest
from fleet.trust import assignment, policy
from fleet.trust.assignment import AssignedBundle
from fleet.trust.repository import signed_file
from fleet.wire import topics
from real_transport import RealBroker
from server.services.trust.keys import KeyFolder
from trust_world import DAY, Device, World, chunk_digests


@pytest.fixture(params=["memory", "mosquitto"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "memory":
        yield World(tmp_path, FakeBroker())
        return
    broker = RealBroker(tmp_path)
    try:
        yield World(tmp_path, broker, patience=1.0)
    finally:
        broker.close()


def stolen(world: World, role: str) -> CryptoSigner:
    """Return a role's private key, taken from the server's disk."""
    key = KeyFolder(world.folder / "server" / "keys").load(role)
    assert key is not None
    return key


def refused(device: Device, data: bytes, counters: dict[str, int] | None = None) -> TrustReason:
    """Return why the device refuses an assignment; its floor stays where it was."""
    before = device.trust.assignment_version
    with pytest.raises(TrustError) as caught:
        device.accept(data, counters)
    assert device.trust.assignment_version == before
    return caught.value.reason


def evil_assignment(world: World, bundles: list[AssignedBundle], key: CryptoSigner) -> bytes:
    """Return an assignment for d1, well formed and signed by this key."""
    document = assignment.build(
        device=DeviceId("d1"),
        rollout="evil",
        version=7,
        bundles=bundles,
        activate_before=world.clock.wall() + timedelta(days=1),
        expires=world.clock.wall() + timedelta(days=1),
    )
    return signed_file(document, [key])


def evil_bundle(good: AssignedBundle, **changed: object) -> AssignedBundle:
    """Return a bundle like a good one, with other bytes."""
    return msgspec.structs.replace(good, digest=str(Digest.of(b"evil")), **changed)


def test_without_an_attacker_everything_works(world: World) -> None:
    """A release is signed, published, assigned; the device verifies and downloads it, and again after v2."""
    device = world.device()
    for number in (1, 2):
        bundle = world.server.release(str(number), counter=number, size=600_000, seed=number)
        accepted = device.accept(world.server.assignment("d1", [bundle], version=number))
        assert accepted.targets == (bundle,)
        device.downloader.fetch(accepted.targets[0])
        assert device.store.has(Digest(bundle.digest))
    assert device.refusals == []
    assert device.trust.assignment_version == 2


def test_arbitrary_software(world: World) -> None:
    """Somebody on the broker assigns a bundle of his own, signed by a key of his own."""
    bundle, device = world.server.release("1"), world.device()
    key = CryptoSigner.generate_ed25519()
    assert refused(device, evil_assignment(world, [evil_bundle(bundle)], key)) == "bad_signature"
    assert refused(device, evil_assignment(world, [bundle], key)) == "bad_signature"


def test_a_stolen_director_key_alone_installs_nothing_new(world: World) -> None:
    """A thief of the director's key assigns his own bundle: the image repository does not know it."""
    bundle, device = world.server.release("1"), world.device()
    key = stolen(world, "director")
    other_path = evil_bundle(bundle, version="1-evil")
    assert refused(device, evil_assignment(world, [other_path], key)) == "not_in_repository"
    same_path = evil_bundle(bundle)
    assert refused(device, evil_assignment(world, [same_path], key)) == "not_in_repository"
    lower_counter = msgspec.structs.replace(bundle, release_counter=9)
    assert refused(device, evil_assignment(world, [lower_counter], key)) == "not_in_repository"


def test_a_stolen_director_key_is_worth_nothing_after_rotation(world: World) -> None:
    """The director's key is replaced, an ordinary change of targets: what the thief signs counts no more."""
    bundle, device = world.server.release("1"), world.device()
    key = stolen(world, "director")
    world.server.signing.rotate("director")
    world.server.publish_metadata()
    assert refused(device, evil_assignment(world, [bundle], key)) == "bad_signature"
    device.accept(world.server.assignment("d1", [bundle]))


def test_an_assignment_for_another_device(world: World) -> None:
    """The broker hands d1 the assignment of d2, properly signed."""
    bundle, device = world.server.release("1"), world.device()
    assert refused(device, world.server.assignment("d2", [bundle])) == "wrong_device"


def test_a_bundle_for_other_hardware(world: World) -> None:
    """The director assigns a bundle of another target by mistake."""
    bundle, device = world.server.release("1"), world.device()
    other = msgspec.structs.replace(bundle, target="jetson-orin")
    world.server.signing.add_bundles([other])
    world.server.publish_metadata()
    assert refused(device, world.server.assignment("d1", [other])) == "wrong_target"


def test_an_older_assignment_again(world: World) -> None:
    """The broker plays back last month's assignment after the device has followed a newer one."""
    bundle, device = world.server.release("1"), world.device()
    old = world.server.assignment("d1", [bundle], version=3)
    device.accept(world.server.assignment("d1", [bundle], version=4))
    assert refused(device, old) == "rollback"


def test_an_older_release_needs_a_signed_permission(world: World) -> None:
    """An old release with a known hole is assigned anew: refused, unless the director signs for it."""
    bundle, device = world.server.release("1", counter=1), world.device()
    counters = {"digits": 5}
    assert refused(device, world.server.assignment("d1", [bundle], version=2), counters) == "rollback"
    allowed = world.server.assignment("d1", [bundle], version=3, allow_rollback=True)
    assert device.accept(allowed, counters).allow_rollback


def test_rollback_of_metadata(world: World) -> None:
    """The broker goes back to an older timestamp, which is signed and not expired."""
    first, device = world.server.release("1"), world.device()
    old = world.server.signing.files()["timestamp.json"]
    second = world.server.release("2", counter=2, seed=2)
    device.accept(world.server.assignment("d1", [second]))
    world.forge("timestamp.json", old)
    assert refused(device, world.server.assignment("d1", [first], version=2)) == "rollback"


def test_freeze(world: World) -> None:
    """The broker shows the same signed state for ever: it counts as fresh until the timestamp expires."""
    bundle, device = world.server.release("1"), world.device()
    data = world.server.assignment("d1", [bundle])
    world.clock.seconds += 6 * DAY
    device.accept(data)
    world.clock.seconds += 2 * DAY
    assert refused(device, data) == "expired"
    assert world.server.signing.refresh()
    world.server.publish_metadata()
    device.accept(data)


def test_endless_data(world: World) -> None:
    """Where a small file is due, megabytes come."""
    bundle, device = world.server.release("1"), world.device()
    data = world.server.assignment("d1", [bundle])
    world.forge("2.root.json", b"x" * 600_000)
    assert refused(device, data) == "too_large"
    world.forge("2.root.json", b"")
    world.forge("timestamp.json", b"x" * 20_000)
    assert refused(device, data) == "too_large"
    assert refused(device, b"x" * 200_000) == "too_large"


def test_mix_and_match(world: World) -> None:
    """The broker serves the newest timestamp with the snapshot, or a project's file, of another moment."""
    world.server.release("1")
    older = world.server.signing.files()
    bundle, device = world.server.release("2", counter=2, seed=2), world.device()
    newer = world.server.signing.files()
    data = world.server.assignment("d1", [bundle])
    for role in ("snapshot", "releases"):
        new_name = next(n for n in reversed(list(newer)) if n.endswith(f"{role}.json"))
        old_name = next(n for n in reversed(list(older)) if n.endswith(f"{role}.json"))
        world.forge(new_name, older[old_name])
        assert refused(device, data) in ("mix_and_match", "too_large")
        world.forge(new_name, newer[new_name])
    device.accept(data)


def test_a_withdrawn_release(world: World) -> None:
    """A release is withdrawn; an assignment of it that was signed before is not followed any more."""
    bundle, device = world.server.release("1"), world.device()
    data = world.server.assignment("d1", [bundle])
    world.server.signing.remove_bundles([bundle.path])
    world.server.publish_metadata()
    assert refused(device, data) == "not_in_repository"


def test_a_tampered_chunk(world: World) -> None:
    """A chunk on the broker is replaced: it is refused and reported, never stored; the server mends it."""
    bundle, device = world.server.release("1", size=800_000), world.device()
    accepted = device.accept(world.server.assignment("d1", [bundle])).targets[0]
    victim = Digest.from_hex(chunk_digests(world.server.blobs, bundle)[1])
    world.attacker.publish(topics.chunk(victim), b"evil")
    with pytest.raises(BundleError, match="wrong bytes"):
        device.downloader.fetch(accepted)
    assert {reason for reason, _ in device.refusals} == {"bad_digest"}
    assert not device.store.has(victim)
    assert world.server.distribution.republish(victim)
    device.downloader.fetch(accepted)
    assert all(Digest.of(data) == name for name, data in device.store.blobs.items())


def test_recovery_from_a_fast_forward(world: World) -> None:
    """A thief of the timestamp key signs version 2^31, from the year 2100: devices then refuse the server.

    Once the key is replaced, devices forget what it has signed, and the time that it claimed (TUF 5.3.11).
    """
    bundle, device = world.server.release("1"), world.device()
    device.accept(world.server.assignment("d1", [bundle]))
    key, real = stolen(world, "timestamp"), world.server.signing.files()["timestamp.json"]
    future = datetime(2100, 1, 1, tzinfo=timezone.utc)
    meta: MetaFile = Metadata[Timestamp].from_bytes(real).signed.snapshot_meta
    evil = Timestamp(
        version=2**31,
        expires=future + timedelta(days=1),
        snapshot_meta=meta,
        unrecognized_fields=policy.stamp(future),
    )
    world.forge("timestamp.json", signed_file(evil, [key]))
    device.trust.refresh(world.clock.wall())
    world.forge("timestamp.json", real)
    assert refused(device, world.server.assignment("d1", [bundle], version=2)) == "expired"
    assert device.trust.clock(world.clock.wall()).untrusted

    world.server.signing.rotate("timestamp")
    world.server.publish_metadata()
    device.accept(world.server.assignment("d1", [bundle], version=2))
    assert not device.trust.clock(world.clock.wall()).untrusted


def test_a_hidden_root_does_not_bring_a_withdrawn_key_back(world: World) -> None:
    """The timestamp key is replaced, and the broker hides the new root: the new timestamp does not verify."""
    bundle, device = world.server.release("1"), world.device()
    data = world.server.assignment("d1", [bundle])
    device.accept(data)
    world.server.signing.rotate("timestamp")
    world.server.publish_metadata()
    world.forge("2.root.json", b"")
    assert refused(device, data) == "bad_signature"


def test_a_device_that_missed_every_rotation_catches_up(world: World) -> None:
    """A device was in a drawer while each key was replaced: it walks the chain of roots from its own."""
    bundle, device = world.server.release("1"), world.device()
    device.accept(world.server.assignment("d1", [bundle]))
    for role in ("root", "targets", "snapshot", "timestamp", "director", "root"):
        world.server.signing.rotate(role)
    world.server.publish_metadata()
    device.accept(world.server.assignment("d1", [bundle], version=2))


def test_a_clock_at_1970(world: World) -> None:
    """The device's battery is empty, its clock stands at 1970: expired metadata does not come to life."""
    bundle, device = world.server.release("1"), world.device()
    data = world.server.assignment("d1", [bundle])
    device.accept(data)
    world.clock.seconds += 30 * DAY
    world.server.signing.refresh()
    world.server.publish_metadata()
    device.trust.refresh(world.clock.wall())
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    assert device.trust.clock(epoch).untrusted
    with pytest.raises(TrustError) as caught:
        device.trust.accept(data, {}, epoch)
    assert caught.value.reason == "expired"
    device.trust.accept(world.server.assignment("d1", [bundle], version=2), {}, epoch)


def test_a_clock_at_2100(world: World) -> None:
    """The clock is set to 2100: nothing new is installed, nothing is forgotten; set right, all is well."""
    bundle, device = world.server.release("1"), world.device()
    data = world.server.assignment("d1", [bundle])
    with pytest.raises(TrustError) as caught:
        device.trust.accept(data, {}, datetime(2100, 1, 1, tzinfo=timezone.utc))
    assert caught.value.reason == "expired"
    device.accept(data)
