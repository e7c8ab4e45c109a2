"""What a site gateway puts on its site's broker: in which order, within which room, after which faults."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.site_ledger import SiteLedger
from device_agent.errors import UnreachableError
from device_agent.gateway import SiteGateway, SiteParts
from device_agent.ports import OnMessage
from device_agent.site_shelf import Shelf
from device_agent.update.chunk_plan import Patience
from device_agent.update.site_plan import Parcel
from fake_link import FakeBroker
from fleet.bundle.cutting import cut
from fleet.errors import BundleError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import codec, topics
from fleet.wire.messages import RefusalEvent
from processes import wait_until
from server.services.releases.distribution import prepare
from trust_world import Device, MemoryBlobs, MemoryStore, World, chunk_digests, make_bundle

SIZE = 900_000


class NearLink:
    """A gateway's connection to a broker in memory: what it puts is there at once, or not at all."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._listening = broker.connection()
        self.connected = True
        self.before_put: Callable[[str], None] = lambda _topic: None

    def put(self, topic: str, payload: bytes, seconds: float) -> None:
        """Have the broker retain it."""
        assert seconds > 0
        self.before_put(topic)
        if not self._broker.up:
            raise UnreachableError("not connected")
        self._broker.take(topic, payload, retain=True)

    def subscribe(self, topics_: Sequence[str], on_message: OnMessage) -> None:
        """Subscribe."""
        for topic in topics_:
            self._listening.subscribe(topic, lambda x: on_message(x.topic, x.payload))

    def unsubscribe(self, topics_: Sequence[str]) -> None:
        """Unsubscribe."""
        for topic in topics_:
            self._listening.unsubscribe(topic)

    def start(self) -> None:
        """Do nothing: it is connected."""

    def stop(self) -> None:
        """Do nothing."""

    def certificate_renewed(self) -> None:
        """Do nothing."""


class Site:
    """The fleet's broker with a bundle on it, the site's broker, and a gateway's shelf between."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cloud, self.near = FakeBroker(), FakeBroker()
        self.link = NearLink(self.near)
        self.blobs, self.store = MemoryBlobs(), MemoryStore()
        self.shelf = self.restarted(budget=10 * SIZE)
        self.parcel = self.released("1")

    def restarted(self, budget: int = 10 * SIZE) -> Shelf:
        """Return what a new process of the gateway has."""
        self.shelf = Shelf(self.link, self.store, SiteLedger(self.folder / "published.json"), budget, 0.1)
        return self.shelf

    def released(self, version: str) -> Parcel:
        """Put a bundle on the fleet's broker, of whose bytes the most are those of any other version."""
        weights = random.Random(1).randbytes(SIZE - 1000) + random.Random(version).randbytes(1000)
        made = make_bundle(self.blobs, weights=weights)
        bundle = prepare(made, self.blobs, version=version, release_counter=1)
        server = self.cloud.connection()
        for hex_, data in self.chunks(bundle).items():
            server.publish(topics.chunk(Digest.from_hex(hex_)), data)
        return Parcel(index=bundle.index, index_size=bundle.index_size, bundle=bundle)

    def chunks(self, bundle: AssignedBundle) -> dict[str, bytes]:
        """Return a bundle's chunks and its index, by their digests in hex."""
        found = {Digest(bundle.index).hex: self.blobs.read(Digest(bundle.index))}
        wanted = set(chunk_digests(self.blobs, bundle))
        for data in list(self.blobs.blobs.values()):
            for start, size in _cuts(data):
                piece = data[start : start + size]
                if Digest.of(piece).hex in wanted:
                    found[Digest.of(piece).hex] = piece
        return found

    def fetch(self, parcel: Parcel, stop: Callable[[], bool] = lambda: False) -> None:
        """Download a bundle over the fleet's broker, as a gateway does."""
        downloader = Downloader(
            [Priced(MqttSource(self.cloud.link("box")))], self.store, lambda *_: None,
            Patience(first=0.2), give_up=1.0, verified=self.shelf.pass_on,
        )  # fmt: skip
        assert parcel.bundle is not None
        downloader.fetch(parcel.bundle, stop)

    def there(self) -> set[str]:
        """Return what the site's broker retains, in hex."""
        return {topic.rpartition("/")[2] for topic in self.near.retained}

    def all_of(self, parcel: Parcel) -> set[str]:
        """Return what the broker retains of a parcel that is whole: its mark too."""
        return {digest.hex for digest in self.shelf.sizes(parcel)}


def _cuts(data: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    for piece in cut(data):
        yield start, len(piece)
        start += len(piece)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_chunks_are_there_before_the_download_is_over_and_the_mark_last(site: Site) -> None:
    """First manifest and index, then what comes; that all of it is there is said at the very end."""
    site.shelf.expect([site.parcel])
    seen: list[int] = []

    def stop() -> bool:
        seen.append(len(site.near.retained))
        return False

    site.fetch(site.parcel, stop)
    assert len(seen) > 1
    assert max(seen) >= 3
    bundle = site.parcel.bundle
    assert bundle is not None
    order = [topic.rpartition("/")[2] for topic, _ in site.near.published]
    assert order[:2] == [Digest(bundle.digest).hex, Digest(bundle.index).hex]
    assert site.there() == set(site.chunks(bundle))
    assert not site.shelf.retained(site.parcel)
    site.shelf.complete(site.parcel)
    assert site.shelf.retained(site.parcel)
    order = [topic.rpartition("/")[2] for topic, _ in site.near.published]
    assert len(order) == len(set(order)) == len(site.all_of(site.parcel))


def test_what_nobody_expects_is_not_passed_on(site: Site) -> None:
    """The gateway's own download of something else is nobody's business."""
    site.fetch(site.parcel)
    assert site.near.published == []


def test_what_has_no_room_is_not_even_begun(site: Site) -> None:
    """The budget counts all of a bundle, before its first chunk."""
    site.restarted(budget=SIZE // 2).expect([site.parcel])
    site.fetch(site.parcel)
    assert site.near.published == []
    assert not site.shelf.begin(site.parcel)


def test_a_broker_that_goes_in_the_middle_does_not_stop_the_download(site: Site) -> None:
    """It hangs after some chunks: what could not be passed on is put there from the disk, each once."""
    site.shelf.expect([site.parcel])

    def hang(_topic: str) -> None:
        site.near.up = len(site.near.published) < 3

    site.link.before_put = hang
    site.fetch(site.parcel)
    assert len(site.near.published) == 3
    site.link.before_put = lambda _topic: None
    site.near.up = True
    site.shelf.complete(site.parcel)
    assert site.there() == site.all_of(site.parcel)
    assert len(site.near.published) == len(site.all_of(site.parcel))


def test_a_broker_that_comes_back_empty_in_the_middle_gets_all_of_it(site: Site) -> None:
    """It restarts while chunks are passed on, and has lost the first ones: they are put there again."""
    site.shelf.expect([site.parcel])
    puts = []

    def restart(topic: str) -> None:
        puts.append(topic)
        if len(puts) == 4:
            site.near.restart()
            site.shelf.reconnected()

    site.link.before_put = restart
    site.fetch(site.parcel)
    assert site.there() != set(site.all_of(site.parcel))
    site.shelf.complete(site.parcel)
    assert site.there() == site.all_of(site.parcel)


def test_a_broker_that_restarts_while_all_of_it_is_put_there_gets_no_mark(site: Site) -> None:
    """Otherwise the next life of the gateway would believe the mark."""
    site.fetch(site.parcel)
    puts = []

    def restart(topic: str) -> None:
        puts.append(topic)
        if len(puts) == 3:
            site.near.restart()
            site.shelf.reconnected()

    site.link.before_put = restart
    with pytest.raises(UnreachableError, match="for a moment"):
        site.shelf.complete(site.parcel)
    assert not site.shelf.retained(site.parcel)
    site.shelf.complete(site.parcel)
    assert site.there() == site.all_of(site.parcel)


def test_a_gateway_that_was_killed_goes_on_with_what_it_has(site: Site) -> None:
    """Its next life passes on what the first had downloaded, and the rest; nothing crosses the line twice."""
    site.shelf.expect([site.parcel])
    with pytest.raises(UnreachableError, match="stopped"):
        site.fetch(site.parcel, lambda: len(site.near.published) > 3)
    half = len(site.near.published)
    assert 3 < half < len(site.all_of(site.parcel))
    site.near.restart()
    site.restarted().expect([site.parcel])
    assert site.shelf.known(site.parcel)
    assert not site.shelf.retained(site.parcel)
    assert site.shelf.begin(site.parcel)
    site.fetch(site.parcel)
    site.shelf.complete(site.parcel)
    assert site.there() == site.all_of(site.parcel)


def test_what_leaves_gives_its_room_and_what_stays_keeps_shared_chunks(site: Site) -> None:
    """The mark goes first, so that a gateway killed in the middle never takes half a bundle for a whole."""
    other = site.released("2")
    for parcel in (site.parcel, other):
        site.fetch(parcel)
        assert site.shelf.begin(parcel)
        site.shelf.complete(parcel)
    cleared: list[str] = []
    site.link.before_put = cleared.append
    assert site.shelf.clear({other.index}) == [site.parcel.index]
    assert site.there() == site.all_of(other)
    assert len(cleared) < len(site.all_of(other)) / 2 + 3
    mark = (site.all_of(site.parcel) - set(site.chunks(_bundle(site.parcel)))).pop()
    assert cleared[0].endswith(mark)
    assert site.restarted().clear({other.index}) == []


def _bundle(parcel: Parcel) -> AssignedBundle:
    assert parcel.bundle is not None
    return parcel.bundle


def test_a_chunk_that_was_missed_is_put_there_again_alone(site: Site) -> None:
    site.fetch(site.parcel)
    site.shelf.complete(site.parcel)
    lost = Digest.from_hex(chunk_digests(site.blobs, _bundle(site.parcel))[2])
    site.near.retained.pop(topics.chunk(lost))
    before = len(site.near.published)
    site.shelf.mend(Digest.of(b"nobody's"), [site.parcel])
    site.shelf.mend(lost, [site.parcel])
    assert len(site.near.published) == before + 1
    assert site.there() == site.all_of(site.parcel)


def test_a_chunk_that_was_missed_of_what_is_still_coming_is_put_there_at_the_end(site: Site) -> None:
    site.shelf.expect([site.parcel])
    site.fetch(site.parcel)
    lost = Digest.from_hex(chunk_digests(site.blobs, _bundle(site.parcel))[2])
    site.near.retained.pop(topics.chunk(lost))
    site.shelf.mend(lost, [])
    assert lost.hex not in site.there()
    site.shelf.complete(site.parcel)
    assert site.there() == site.all_of(site.parcel)


def test_what_the_disk_has_spoilt_is_not_put_there(site: Site) -> None:
    site.fetch(site.parcel)
    blob = max(site.store.blobs, key=lambda digest: len(site.store.blobs[digest]))
    data = bytearray(site.store.blobs[blob])
    data[-1] ^= 1
    site.store.blobs[blob] = bytes(data)
    with pytest.raises(BundleError, match="altered"):
        site.shelf.complete(site.parcel)
    assert not site.shelf.retained(site.parcel)


def test_a_gateway_that_stops_puts_nothing_more(site: Site) -> None:
    site.fetch(site.parcel)
    site.shelf.stop()
    with pytest.raises(UnreachableError, match="stopped"):
        site.shelf.complete(site.parcel)
    assert site.near.published == []


# --- junk on a gateway's topics -------------------------------------------------------------------------


class Junction:
    """A gateway on a site's broker in memory, in a fleet in memory."""

    def __init__(self, folder: Path) -> None:
        self.cloud = FakeBroker()
        self.world = World(folder, self.cloud)
        self.box: Device = self.world.device("box")
        self.near = FakeBroker()
        self.give_up = 1.0
        self.link = NearLink(self.near)
        self._anybody = self.near.connection()
        self.gateway = SiteGateway(
            SiteParts(
                link=self.link,
                trust=self.box.trust,
                store=self.box.store,
                downloader=self.downloader,
                downloading=threading.Lock(),
                ledger=SiteLedger(folder / "published.json"),
                budget=10 * SIZE,
                now=self.world.clock.wall,
            )
        )

    def downloader(self) -> Downloader:
        """Return what brings chunks over the gateway's own line."""
        return Downloader(
            [Priced(MqttSource(self.cloud.link("box")))], self.box.store, lambda *_: None,
            Patience(first=0.05, longest=0.2, between_bad=0.01), give_up=self.give_up,
        )  # fmt: skip

    def withhold(self, bundle: AssignedBundle, other: AssignedBundle) -> None:
        """Have no chunk of a bundle come to the gateway but its manifest and what another has too."""
        blobs = self.world.server.blobs
        kept = {Digest(bundle.digest).hex, *chunk_digests(blobs, other)}
        gone = {topics.chunk(Digest.from_hex(x)) for x in chunk_digests(blobs, bundle) if x not in kept}
        assert gone
        self.cloud.spoil = lambda topic, payload: None if topic in gone else payload

    def say(self, topic: str, payload: bytes) -> None:
        """Publish at the site, as whoever has its broker may."""
        self._anybody.publish(topic, payload)


@pytest.fixture
def junction(tmp_path: Path) -> Iterator[Junction]:
    made = Junction(tmp_path)
    made.gateway.start()
    try:
        yield made
    finally:
        made.gateway.stop()


def said(what: str, detail: str) -> bytes:
    return codec.encode(
        RefusalEvent(id="x", what=what, reason="missing", detail=detail, time=0.0, boot_id="b", monotonic=0.0)
    )


def test_junk_on_a_gateways_topics_costs_nobody_anything(junction: Junction) -> None:
    """Assignments that are none, too long, for names that are none; events of nonsense; chunks nobody has.

    A gateway takes them in its stride, keeps little of them, and serves what is signed as if nothing were.
    """
    world, rng = junction.world, random.Random(1)
    bundle = world.server.release("1", size=300_000)
    good = world.server.assignment("cam-1", [bundle])
    for topic in (
        "kedge/v1/device/../assignment",
        "kedge/v1/device/CAM 1/assignment",
        "kedge/v1/device//assignment",
    ):
        junction.say(topic, good)
    junction.say(topics.assignment(DeviceId("cam-2")), good)
    junction.say(topics.assignment(DeviceId("cam-3")), b"x" * 5_000_000)
    for number in range(4500):
        junction.say(topics.assignment(DeviceId(f"ghost-{number}")), rng.randbytes(40))
    for detail in ("", ": ", "sha256:zz: nothing", "x" * 100_000, str(Digest.of(b"nobody's")), "\0"):
        junction.say(topics.event(DeviceId("cam-3")), said("chunk", detail))
    for number in range(4500):
        junction.say(topics.event(DeviceId("cam-3")), said("chunk", f"{Digest.of(str(number).encode())}: x"))
    junction.say(topics.event(DeviceId("cam-3")), b"\xff" * 100)
    assert sum(map(len, junction.gateway._arrived.values())) < 2**20
    assert len(junction.gateway._missed) <= 4096
    wait_until(lambda: not junction.gateway._arrived, "all of it is looked at")
    junction.say(topics.assignment(DeviceId("cam-1")), good)
    wait_until(lambda: junction.gateway.status()["served"] == [bundle.index], "what is signed is served", 20)


def test_an_assignment_that_goes_round_and_round_is_looked_at_once(junction: Junction) -> None:
    """Two bridges pass a message to one another for ever: the same bytes again are no news."""
    world = junction.world
    old, new = world.server.release("1"), world.server.release("2", counter=2, seed=2)
    junction.say(topics.assignment(DeviceId("cam-1")), world.server.assignment("cam-1", [old]))
    wait_until(lambda: junction.gateway.status()["served"] == [old.index], "the old one is served", 20)
    second = world.server.assignment("cam-1", [new], version=2)
    over = threading.Event()

    def go_round() -> None:
        while not over.wait(0.05):
            junction.say(topics.assignment(DeviceId("cam-1")), second)

    thread = threading.Thread(target=go_round)
    thread.start()
    try:
        # What leaves is cleared when nothing new has come for a while.
        wait_until(lambda: junction.gateway.status()["served"] == [new.index], "the old one is cleared", 20)
    finally:
        over.set()
        thread.join()


def test_what_is_superseded_while_it_comes_in_is_not_brought_to_its_end(junction: Junction) -> None:
    """A bundle comes in for hours on a slow line; meanwhile another one is assigned, and comes instead."""
    world = junction.world
    old, new = world.server.release("1"), world.server.release("2", counter=2, seed=2)
    junction.withhold(old, new)
    junction.give_up = 600.0
    junction.say(topics.assignment(DeviceId("cam-1")), world.server.assignment("cam-1", [old]))
    wait_until(lambda: junction.gateway._fetching, "the old one comes in")
    wait_until(lambda: junction.box.store.has(Digest(old.index)), "its index is here", 20)
    junction.say(topics.assignment(DeviceId("cam-1")), world.server.assignment("cam-1", [new], version=2))
    wait_until(lambda: junction.gateway.status()["served"] == [new.index], "the new one is served", 20)


def test_one_bundle_that_nobody_has_holds_no_other_up(junction: Junction) -> None:
    """A chunk of what the first neighbour is to run was lost everywhere: the second gets its own."""
    world = junction.world
    lost, good = world.server.release("1"), world.server.release("2", counter=2, seed=2)
    junction.withhold(lost, good)
    junction.say(topics.assignment(DeviceId("cam-1")), world.server.assignment("cam-1", [lost]))
    wait_until(lambda: junction.gateway._fetching, "the lost one is asked for")
    junction.say(topics.assignment(DeviceId("cam-2")), world.server.assignment("cam-2", [good]))
    wait_until(lambda: junction.gateway.status()["served"] == [good.index], "the good one is served", 20)


def test_a_download_does_not_wait_for_a_gateway_that_waits_for_its_broker(site: Site) -> None:
    """The site's broker hangs while another bundle is put there: what comes in now is put there later."""
    site.fetch(site.parcel)
    other = site.released("2")
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(_topic: str) -> None:
        hangs.set()
        assert goes_on.wait(20.0)

    site.link.before_put = hang
    thread = threading.Thread(target=site.shelf.complete, args=(site.parcel,))
    thread.start()
    assert hangs.wait(5.0)
    site.fetch(other)
    goes_on.set()
    thread.join()
    assert site.there() == site.all_of(site.parcel)


def test_a_lie_about_the_mark_is_no_mark(site: Site) -> None:
    """Somebody with a gateway's key puts rubbish on the mark's topic: that does not say that all is there."""
    site.fetch(site.parcel)
    assert site.shelf.begin(site.parcel)
    mark = (site.all_of(site.parcel) - set(site.chunks(_bundle(site.parcel)))).pop()
    site.near.connection().publish(topics.chunk(Digest.from_hex(mark)), b"rubbish")
    assert not site.shelf.retained(site.parcel)


def test_a_neighbour_whose_gateway_stalls_in_the_middle_goes_past_it(site: Site) -> None:
    """Half of a bundle came, and then nothing: the rest comes the dear way after a bounded while."""
    site.shelf.expect([site.parcel])
    with pytest.raises(UnreachableError, match="stopped"):
        site.fetch(site.parcel, lambda: len(site.near.published) > 3)
    dear = MqttSource(site.cloud.link("cam"), 0.05)
    dear.name = "wan"
    sources = [Priced(MqttSource(site.near.link("cam-1"), 0.05)), Priced(dear, 1.0, hold_back=0.5)]
    began = time.monotonic()
    took = Downloader(
        sources, MemoryStore(), lambda *_: None, Patience(first=0.1, longest=0.2), give_up=0.5
    ).fetch(_bundle(site.parcel))
    assert took.by_source["mqtt"] > 0
    assert took.by_source["wan"] > 0
    assert 0.5 < time.monotonic() - began < 5
