"""Chunks from the server's blobs to a device's store, over a broker in memory: once, whole, resumable."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.errors import UnreachableError
from fake_link import FakeBroker
from fleet.bundle import chunks
from fleet.bundle.cutting import CHUNK_MAX
from fleet.errors import BundleError
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import topics
from server.errors import BrokerError
from server.services.distribution import prepare
from trust_world import World, chunk_digests, make_bundle

SIZE = 40 * CHUNK_MAX + 17


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
    assert world.server.distribution.reconcile() > 40


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
