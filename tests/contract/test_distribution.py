"""Chunks from the server's blobs to a device's store, over a broker in memory: once, whole, resumable."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import msgspec
import pytest

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.errors import UnreachableError
from fake_link import FakeBroker
from fleet.bundle import catalogue, chunks
from fleet.bundle.cutting import CHUNK_MAX
from fleet.errors import BundleError
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import topics
from server.errors import BrokerError
from server.services.releases.distribution import Distribution, MemoryLedger, parcel_of, prepare
from trust_world import MemoryBlobs, World, chunk_digests, make_bundle

SIZE = 20 * CHUNK_MAX + 17


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def world(tmp_path: Path, broker: FakeBroker) -> World:
    return World(tmp_path, broker)


def on_broker(broker: FakeBroker) -> set[str]:
    prefix = f"{topics.CHUNK}/"
    chunks_ = {topic for topic in broker.retained if topic.startswith(prefix)} - {topics.catalogue()}
    return {topic.removeprefix(prefix) for topic in chunks_}


def published(broker: FakeBroker) -> list[str]:
    return [
        topic
        for topic, payload in broker.published
        if topic.startswith(topics.CHUNK) and payload and topic != topics.catalogue()
    ]


def test_each_chunk_is_published_once_and_the_index_last(world: World, broker: FakeBroker) -> None:
    bundle = world.server.release("1", size=SIZE)
    topics_ = published(broker)
    assert len(topics_) == len(set(topics_)) == len(chunk_digests(world.server.blobs, bundle)) + 1
    assert topics_[-1] == topics.chunk(Digest(bundle.index))
    assert world.server.distribution.add([bundle]) == 0


def test_two_versions_share_what_they_have_in_common(world: World, broker: FakeBroker) -> None:
    first = world.server.release("1", size=SIZE)
    count = len(published(broker))
    same = msgspec.structs.replace(first, version="2", release_counter=2)
    world.server.signing.add_bundles([same])
    assert world.server.distribution.add([same]) == 0
    assert len(published(broker)) == count
    assert world.server.distribution.remove([first]) == 0
    assert world.server.distribution.remove([same]) == count
    assert on_broker(broker) == set()


def test_the_window_is_never_exceeded(world: World, broker: FakeBroker) -> None:
    bundle = world.server.release("1", size=SIZE)
    device, link = world.device(), broker.link("d2")
    downloader = Downloader([Priced(MqttSource(link))], device.store, lambda _reason, _detail: None)
    result = downloader.fetch(bundle)
    assert result.received > SIZE
    assert link.most_subscribed <= 16
    assert link.subscriptions == {}


def test_a_second_download_of_the_same_bytes_costs_nothing(world: World) -> None:
    bundle, device = world.server.release("1", size=SIZE), world.device()
    device.downloader.fetch(bundle)
    again = device.downloader.fetch(bundle)
    assert again.received == 0
    assert again.reused > SIZE


def test_a_file_that_the_disk_has_damaged_is_brought_anew(world: World) -> None:
    """The flash forgets a bit of a stored model: the same bundle, assigned again, comes whole."""
    bundle, device = world.server.release("1", size=SIZE), world.device()
    device.downloader.fetch(bundle)
    largest = max(device.store.blobs, key=lambda digest: len(device.store.blobs[digest]))
    device.store.blobs[largest] = b"?" + device.store.blobs[largest][1:]
    again = device.downloader.fetch(bundle)
    assert again.received == len(device.store.blobs[largest])
    assert device.store.intact(Digest(largest))


def test_only_whole_blobs_stay(world: World) -> None:
    """After the download, the store holds manifest, index and files: the chunks have gone into them."""
    bundle, device = world.server.release("1", size=SIZE), world.device()
    device.downloader.fetch(bundle)
    kept = set(device.store.blobs)
    index = chunks.decode(world.server.blobs.read(Digest(bundle.index)))
    assert kept == {bundle.index, *index.blobs}


def test_a_download_that_was_cut_off_goes_on_where_it_was(world: World) -> None:
    """The agent is told to stop after ten chunks, and starts again: no chunk is fetched twice."""
    bundle, device = world.server.release("1", size=SIZE), world.device()
    with pytest.raises(UnreachableError, match="stopped"):
        device.downloader.fetch(bundle, stop=lambda: device.store.puts >= 10)
    before = device.store.puts
    device.downloader.fetch(bundle)
    assert before >= 10
    assert device.store.puts == len(set(chunk_digests(world.server.blobs, bundle))) + 1


def test_messages_that_get_lost_are_asked_for_again(world: World, broker: FakeBroker) -> None:
    """Every third message to the device is lost on the way."""
    bundle, device = world.server.release("1", size=SIZE), world.device()
    counter = itertools.count()
    broker.spoil = lambda _topic, payload: payload if next(counter) % 3 else None
    device.downloader.fetch(bundle)
    assert device.store.has(Digest(bundle.digest))


def test_bytes_that_are_spoilt_once_come_right_the_second_time(world: World, broker: FakeBroker) -> None:
    bundle, device = world.server.release("1", size=SIZE), world.device()
    seen: set[str] = set()

    def spoil(topic: str, payload: bytes) -> bytes:
        first = topic not in seen and len(seen) < 3
        seen.add(topic)
        return payload[:-1] + b"?" if first else payload

    broker.spoil = spoil
    device.downloader.fetch(bundle)
    assert [reason for reason, _ in device.refusals] == ["bad_digest"] * 3


def test_endless_data_on_a_chunk_topic(world: World, broker: FakeBroker) -> None:
    """A chunk of a megabyte where 256 KiB are due is not even hashed, and never stored."""
    bundle, device = world.server.release("1", size=SIZE), world.device()
    broker.spoil = lambda _topic, payload: payload + b"x" * 1_000_000
    with pytest.raises(BundleError, match="wrong bytes"):
        device.downloader.fetch(bundle)
    assert device.store.blobs == {}


def test_a_missing_chunk_is_reported_and_published_again(world: World, broker: FakeBroker) -> None:
    """Somebody clears one chunk by hand: the device says so, the server mends it, the download goes on."""
    bundle, device = world.server.release("1", size=SIZE), world.device()
    victim = chunk_digests(world.server.blobs, bundle)[7]
    del broker.retained[topics.chunk(Digest.from_hex(victim))]
    with pytest.raises(UnreachableError, match="nothing came"):
        device.downloader.fetch(bundle)
    (refusal,) = device.refusals
    assert refusal[0] == "missing"
    world.server.distribution.report(refusal[1])
    assert world.server.distribution.mend() == 1
    assert world.server.distribution.mend() == 0
    device.downloader.fetch(bundle)


def test_a_broker_that_lost_everything_gets_everything_again(world: World, broker: FakeBroker) -> None:
    bundles = [world.server.release(str(n), counter=n, size=SIZE, seed=n) for n in (1, 2)]
    before = on_broker(broker)
    broker.restart()
    assert world.server.distribution.reconcile() == len(before)
    world.server.publish_metadata()
    assert on_broker(broker) == before
    assert topics.trust("timestamp.json") in broker.retained
    assert bundles


def test_a_broker_that_lost_the_newest_gets_just_that(world: World, broker: FakeBroker) -> None:
    """The broker was killed after its last autosave: what came before that moment is still there."""
    world.server.release("1", size=SIZE, seed=1)
    saved = on_broker(broker)
    second = world.server.release("2", counter=2, size=SIZE, seed=2)
    lost = on_broker(broker) - saved
    kept = saved | set(sorted(lost - {Digest(second.index).hex})[:5])
    broker.restart(keep=lambda topic: topic.rpartition("/")[2] in kept)
    world.server.distribution.reconcile()
    assert on_broker(broker) == saved | lost
    again = [t for t, _ in broker.published if t.startswith(topics.CHUNK)].count(
        topics.chunk(Digest(second.index))
    )
    assert again == 2


def test_publishing_goes_on_after_the_broker_was_away(world: World, broker: FakeBroker) -> None:
    bundle = prepare(
        make_bundle(world.server.blobs, size=SIZE), world.server.blobs, version="1", release_counter=1
    )
    broker.up = False
    with pytest.raises(BrokerError):
        world.server.distribution.add([bundle])
    broker.up = True
    assert world.server.distribution.reconcile() > 20


def test_metadata_that_is_gone_is_cleared(world: World, broker: FakeBroker) -> None:
    for number in range(6):
        world.server.release(str(number), counter=number + 1, seed=number)
    on_topics = {t.rpartition("/")[2] for t in broker.retained if t.startswith(topics.TRUST)}
    assert on_topics == set(world.server.signing.files())


@pytest.mark.parametrize("change", ["manifest_size", "index_size"])
def test_sizes_beyond_the_limits_are_refused_before_a_byte_is_asked_for(world: World, change: str) -> None:
    bundle, device = world.server.release("1"), world.device()
    evil: AssignedBundle = msgspec.structs.replace(bundle, **{change: 10**9})
    with pytest.raises(BundleError, match="expected at most"):
        device.downloader.fetch(evil)


def test_an_index_that_does_not_fit_the_manifest_is_refused(world: World) -> None:
    """The signed index lists other files than the signed manifest: a mistake of the server."""
    first, second = (world.server.release(str(n), counter=n, seed=n, size=n * 999) for n in (1, 2))
    device = world.device()
    mixed = msgspec.structs.replace(first, index=second.index, index_size=second.index_size)
    with pytest.raises(BundleError, match=r"model\.onnx is not there"):
        device.downloader.fetch(mixed)


def test_a_device_that_reports_without_end_costs_little(world: World, broker: FakeBroker) -> None:
    """A hostile device reports every chunk, chunks that never were, and nonsense, as fast as it can."""
    bundle = world.server.release("1", size=SIZE)
    before = len(published(broker))
    for round_ in range(50):
        for digest in chunk_digests(world.server.blobs, bundle):
            world.server.distribution.report(f"sha256:{digest}: nothing on its topic")
        world.server.distribution.report(f"{Digest.of(str(round_).encode())}: nothing")
        world.server.distribution.report("nonsense")
    world.server.distribution.mend()
    assert len(published(broker)) - before <= 16


# --- versions that share bytes -------------------------------------------------------------------------


def two_versions(world: World) -> tuple[AssignedBundle, AssignedBundle]:
    """Publish a model, and again with its last 100 kB, a layer, trained anew."""
    weights = random.Random(1).randbytes(6_000_000)
    layer = random.Random(2).randbytes(100_000)
    bundles = []
    for number, data in enumerate((weights, weights[: -len(layer)] + layer), 1):
        made = make_bundle(world.server.blobs, weights=data)
        bundle = prepare(made, world.server.blobs, version=str(number), release_counter=number)
        world.server.signing.add_bundles([bundle])
        bundles.append(bundle)
    return bundles[0], bundles[1]


def test_a_new_version_publishes_only_the_chunks_that_changed(world: World) -> None:
    first, second = two_versions(world)
    assert world.server.distribution.add([first]) > 30
    # The manifest, the index, and the chunks in which the changed layer lies.
    assert world.server.distribution.add([second]) <= 5


def test_a_device_downloads_only_what_its_last_version_has_not(world: World) -> None:
    first, second = two_versions(world)
    world.server.distribution.add([first, second])
    device = world.device()
    device.held = [Digest(first.index)]
    device.downloader.fetch(first)
    took = device.downloader.fetch(second)
    assert took.received < 3 * CHUNK_MAX + second.index_size
    assert took.reused > 5_000_000


def test_what_a_damaged_old_version_has_is_not_copied(world: World) -> None:
    """The disk has rotted where the new version would copy from: those chunks come over the air."""
    first, second = two_versions(world)
    world.server.distribution.add([first, second])
    device = world.device()
    device.held = [Digest(first.index)]
    device.downloader.fetch(first)
    for digest, data in device.store.blobs.items():
        if len(data) > 5_000_000:
            device.store.blobs[digest] = bytes(1_000_000) + data[1_000_000:]
    took = device.downloader.fetch(second)
    assert 900_000 < took.received < 2_000_000


def test_an_empty_file_needs_no_message(world: World) -> None:
    """A retained message without bytes would be none: an empty file is made on the device."""
    made = make_bundle(world.server.blobs, weights=b"")
    bundle = prepare(made, world.server.blobs, version="1", release_counter=1)
    world.server.distribution.add([bundle])
    device = world.device()
    device.downloader.fetch(bundle)
    assert device.store.get(Digest.of(b"")) == b""


# --- the budget ----------------------------------------------------------------------------------------


def arranged(world: World, ledger: MemoryLedger, budget: int | None) -> Distribution:
    return Distribution(world.broker.connection(), world.server.blobs, 0.1, budget, ledger)


def three(world: World) -> list[AssignedBundle]:
    return [
        prepare(
            make_bundle(world.server.blobs, size=1_000_000, seed=seed),
            world.server.blobs,
            version=f"{seed}.0",
            release_counter=seed,
        )
        for seed in (1, 2, 3)
    ]


def retained_bytes(broker: FakeBroker) -> int:
    return sum(len(data) for topic, data in broker.retained.items() if topic.startswith(topics.CHUNK))


def told(broker: FakeBroker) -> catalogue.Catalogue:
    return catalogue.decode(broker.retained[topics.catalogue()])


def test_the_most_wanted_are_retained_and_the_catalogue_says_so(world: World, broker: FakeBroker) -> None:
    one, two, last = three(world)
    distribution = arranged(world, MemoryLedger(), 2_100_000)
    distribution.arrange(map(parcel_of, (one, two, last)))
    assert retained_bytes(broker) < 2_100_000
    assert [Digest(x.index) in told(broker) for x in (one, two, last)] == [True, True, False]
    distribution.arrange(map(parcel_of, (last, one, two)))
    assert retained_bytes(broker) < 2_100_000
    assert [Digest(x.index) in told(broker) for x in (one, two, last)] == [True, False, True]


def test_devices_are_told_before_a_topic_is_empty(world: World, broker: FakeBroker) -> None:
    one, two, _ = three(world)
    distribution = arranged(world, MemoryLedger(), None)
    distribution.arrange(map(parcel_of, (one, two)))
    before = len(broker.published)
    distribution.arrange([parcel_of(one)])
    topic, data = broker.published[before]
    assert topic == topics.catalogue()
    assert Digest(two.index) not in catalogue.decode(data)
    assert all(not data for _, data in broker.published[before + 1 :])
    # A server that dies now must not take the rest for whole when it finds the index.
    assert broker.published[before + 1][0] == topics.chunk(Digest(two.index))


def test_a_server_that_starts_again_clears_what_its_earlier_life_retained(
    world: World, broker: FakeBroker
) -> None:
    """The budget was lowered while the server was down; the broker still has everything."""
    one, two, last = three(world)
    ledger = MemoryLedger()
    arranged(world, ledger, None).arrange(map(parcel_of, (one, two, last)))
    assert retained_bytes(broker) > 3_000_000
    again = arranged(world, ledger, 1_100_000)
    again.reconcile()
    again.arrange(map(parcel_of, (two, one)))
    assert retained_bytes(broker) < 1_100_000
    assert Digest(two.index) in told(broker)
    assert ledger.indexes() == [two.index]


def test_a_server_that_starts_again_publishes_nothing_twice(world: World, broker: FakeBroker) -> None:
    """The broker has kept everything: the new process asks for the indexes and finds them."""
    ledger = MemoryLedger()
    bundles = [parcel_of(bundle) for bundle in three(world)]
    assert arranged(world, ledger, None).arrange(bundles) > 15
    before = len(published(broker))
    assert arranged(world, ledger, None).arrange(bundles) == 0
    assert len(published(broker)) == before


def test_a_crash_in_the_middle_leaves_nothing_behind_for_good(world: World, broker: FakeBroker) -> None:
    """The server dies after half of a bundle's chunks; it is not wanted any more when it is back."""
    one, two, _ = three(world)
    ledger = MemoryLedger()
    distribution = arranged(world, ledger, None)
    some = iter(range(3))
    real = distribution._blobs.read_range

    class Dying(MemoryBlobs):
        def read_range(self, digest: Digest, start: int, size: int) -> bytes:
            if next(some, None) is None:
                raise KeyboardInterrupt
            return real(digest, start, size)

    dying = Dying()
    dying.blobs = world.server.blobs.blobs
    with pytest.raises(KeyboardInterrupt):
        Distribution(world.broker.connection(), dying, 0.1, None, ledger).arrange([parcel_of(one)])
    assert 0 < retained_bytes(broker) < 1_000_000
    arranged(world, ledger, None).arrange([parcel_of(two)])
    kept = set(chunk_digests(world.server.blobs, two)) | {Digest(two.index).hex}
    assert on_broker(broker) == kept


def test_a_broker_that_lost_everything_gets_the_budget_and_no_more(world: World, broker: FakeBroker) -> None:
    one, two, last = three(world)
    distribution = arranged(world, MemoryLedger(), 1_100_000)
    distribution.arrange(map(parcel_of, (one, two, last)))
    before = on_broker(broker)
    broker.restart()
    distribution.reconcile()
    assert on_broker(broker) == before
    assert Digest(one.index) in told(broker)


def test_a_spoilt_blob_is_not_published(world: World) -> None:
    """The server's disk has rotted: better no chunk than one that devices refuse."""
    bundle = three(world)[0]
    blobs = world.server.blobs.blobs
    (weights,) = [digest for digest, data in blobs.items() if len(data) == 1_000_000][:1]
    blobs[weights] = b"rust" + blobs[weights][4:]
    with pytest.raises(BundleError, match="stored bytes"):
        arranged(world, MemoryLedger(), None).arrange([parcel_of(bundle)])
