"""A real mosquitto is killed: what it forgot comes back, and downloads go on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloaded, Downloader, Priced
from device_agent.update.chunk_plan import Patience
from fleet.bundle.cutting import CHUNK_MAX
from fleet.ids import Digest
from processes import wait_until
from real_transport import RealBroker
from trust_world import MemoryStore, World, chunk_digests

SIZE = 60 * CHUNK_MAX


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RealBroker]:
    with contextlib.closing(RealBroker(tmp_path)) as made:
        yield made


def test_a_killed_broker_gets_its_chunks_back(tmp_path: Path, broker: RealBroker) -> None:
    """It is killed and its disk is empty: the server finds every index gone, and publishes again."""
    world = World(tmp_path, broker, patience=1.0)
    bundle = world.server.release("1", size=SIZE)
    assert world.server.distribution.reconcile() == 0
    broker.lose_everything()
    assert world.server.distribution.reconcile() == len(set(chunk_digests(world.server.blobs, bundle))) + 1
    world.server.publish_metadata()
    device = world.device()
    device.accept(world.server.assignment("d1", [bundle]))
    device.downloader.fetch(bundle)
    assert device.store.has(Digest(bundle.digest))


def test_a_download_survives_the_brokers_death(tmp_path: Path, broker: RealBroker) -> None:
    """The broker dies in the middle of a download and comes back empty: the download ends, no chunk twice."""
    world = World(tmp_path, broker, patience=1.0)
    bundle = world.server.release("1", size=SIZE)
    gate, store = threading.Event(), _GatedStore()
    store.gate = gate
    patience = Patience(first=0.5, longest=1.0)
    source = Priced(MqttSource(broker.link("d1")))
    downloader = Downloader([source], store, lambda _reason, _detail: None, patience, give_up=30)
    results: list[Downloaded] = []
    thread = threading.Thread(target=lambda: results.append(downloader.fetch(bundle)))
    thread.start()
    wait_until(lambda: store.puts >= 10, "some chunks have come")
    broker.lose_everything()
    gate.set()
    world.server.distribution.reconcile()
    thread.join(60)
    assert len(results) == 1
    assert store.puts == len(set(chunk_digests(world.server.blobs, bundle))) + 1


class _GatedStore(MemoryStore):
    """Takes ten chunks, and the others once the gate is open."""

    gate: threading.Event

    def wrote(self) -> None:
        """Count a write, and wait."""
        super().wrote()
        if self.puts >= 10:
            assert self.gate.wait(30)
