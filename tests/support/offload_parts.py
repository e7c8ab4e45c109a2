"""The server's offload, wired on a database file with fake accelerators, clock and broker."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from accelerators import DOUBLE, FakeAccelerator
from fleet.ids import DeviceId, Digest
from fleet.offload.routing import Pool
from fleet.wire import codec, topics
from fleet.wire.messages import Answer, HardRequest
from fleet.wire.tensors import from_array
from server.db.engine import Database
from server.db.migrate import upgrade
from server.db.tables import Device
from server.errors import BrokerError
from server.services.health import Health
from server.services.live import Live
from server.services.offload.offload import Offload
from server.services.offload.offload_queue import OffloadQueue
from server.services.offload.pools import Pools, PoolSpec
from server.services.offload.views import OffloadViews
from server.services.people.audit import Audit
from server.services.people.roles import SYSTEM
from server.workers.offload import OffloadWorker

DEVICE = DeviceId("camera-1")
BUNDLE = Digest.of(b"a bundle")


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        """Begin some day."""
        self.time = 1_800_000_000.0

    def now(self) -> float:
        """Return the time."""
        return self.time


class Replies:
    """A broker that keeps what was published; `broken` refuses."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.broken = False
        self._lock = threading.Lock()
        self._sent: list[tuple[str, Answer]] = []

    def publish(self, topic: str, payload: bytes, retain: bool = True, qos: int = 1) -> None:
        """Keep the answer."""
        assert not retain
        assert qos == 1
        if self.broken:
            raise BrokerError("broker: not connected")
        answer = codec.DOWNLINK["reply"](payload)
        assert isinstance(answer, Answer)
        with self._lock:
            self._sent.append((topic, answer))

    def to(self, device: DeviceId) -> list[Answer]:
        """Return what the device got."""
        with self._lock:
            return [answer for topic, answer in self._sent if topic == topics.reply(device)]


class Parts(NamedTuple):
    """Everything, wired."""

    database: Database
    clock: HandClock
    health: Health
    pools: Pools
    queue: OffloadQueue
    offload: Offload
    views: OffloadViews
    replies: Replies
    accelerators: dict[str, FakeAccelerator]

    def worker(self) -> OffloadWorker:
        """Return a worker that is not started yet."""
        return OffloadWorker(self.queue, self.offload, self.replies, Live())


def wired(folder: Path) -> Parts:
    """Return the parts, with one enrolled device and no pool."""
    database, clock, health = Database(f"sqlite:///{folder / 'kedge.db'}"), HandClock(), Health()
    upgrade(database)
    with database.write() as session:
        if session.get(Device, DEVICE) is None:
            session.add(Device(id=DEVICE, target="laptop-x86", enrolled_at=clock.now()))
    accelerators: dict[str, FakeAccelerator] = {}

    def connect(url: str) -> FakeAccelerator:
        return accelerators.setdefault(url, FakeAccelerator())

    pools = Pools(database, clock, Audit(database, clock), connect)
    offload = Offload(database, clock, pools, connect)
    return Parts(
        database=database,
        clock=clock,
        health=health,
        pools=pools,
        queue=OffloadQueue(database, clock, health),
        offload=offload,
        views=OffloadViews(database, clock, pools, offload),
        replies=Replies(),
        accelerators=accelerators,
    )


def add_pool(parts: Parts, name: str, **changes: object) -> FakeAccelerator:
    """Add a pool that doubles; return its accelerator."""
    values: dict[str, object] = {
        "name": name,
        "region": "eu",
        "models": {"doubler": DOUBLE},
        "price_per_hour": 1.0,
        "watts": 100.0,
        **changes,
    }
    parts.pools.add(SYSTEM, PoolSpec(pool=Pool(**values), url=f"grpc://{name}:1"))  # type: ignore[arg-type]  # a test's own values
    return parts.accelerators[f"grpc://{name}:1"]


def hard(parts: Parts, request_id: str, *, ttl: float = 60.0, model: str = "doubler") -> HardRequest:
    """Return a hard request whose right answer is class 2; the device said 1."""
    return HardRequest(
        id=request_id,
        model=model,
        bundle=BUNDLE,
        inputs=(from_array("x", np.asarray([[0.0, 1.0, 5.0, 2.0]], np.float32)),),
        score=0.4,
        provisional=1,
        data_class="crop",
        time=parts.clock.now(),
        expires=parts.clock.now() + ttl,
    )
