"""The worker between the broker's connection and the ingest service: a bounded queue, taken in batches."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fleet.wire import topics
from server.ports.messaging import Connection, Incoming
from server.services.health import Health
from server.services.ingest import Ingest
from server.workers.supervisor import Worker

#: Messages waiting; beyond it the newest are dropped, and devices send them again.
CAPACITY: Final = 50_000
#: Of these, no device has more than so many: one that floods makes only itself wait.
SHARE: Final = CAPACITY // 25
#: Messages in one transaction.
BATCH: Final = 1000
_WAIT: Final = 0.2


class IngestWorker:
    """Feeds the ingest service."""

    def __init__(self, connection: Connection, ingest: Ingest, health: Health) -> None:
        """Subscribe to everything that devices send."""
        self._queue: Final[queue.Queue[Incoming]] = queue.Queue(CAPACITY)
        self._ingest: Final = ingest
        self._health: Final = health
        self._left: list[Incoming] = []
        self._lock: Final = threading.Lock()
        self._waiting: Final[Counter[str]] = Counter()
        self.worker: Final = Worker("ingest", self.step, 0.0)
        for kind in topics.UPLINK:
            connection.subscribe(topics.uplink_filter(kind), self.receive)

    def receive(self, message: Incoming) -> None:
        """Take a message from the connection's thread; never blocks it."""
        sender = _sender(message)
        with self._lock:
            if self._waiting[sender] >= SHARE:
                self._health.count("dropped_messages")
                return
            self._waiting[sender] += 1
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._health.count("dropped_messages")
            self._taken([message])

    def step(self) -> None:
        """Wait a moment for messages, and take in what is there; a batch that failed is tried again."""
        if not self._left:
            self._left = self._batch()
        if self._left:
            self._ingest.handle(self._left)
            self._left = []

    def _batch(self) -> list[Incoming]:
        try:
            batch = [self._queue.get(timeout=_WAIT)]
        except queue.Empty:
            return []
        with contextlib.suppress(queue.Empty):
            while len(batch) < BATCH:
                batch.append(self._queue.get_nowait())
        self._taken(batch)
        return batch

    def _taken(self, messages: Sequence[Incoming]) -> None:
        with self._lock:
            for sender, number in Counter(map(_sender, messages)).items():
                self._waiting[sender] -= number
                if not self._waiting[sender]:
                    del self._waiting[sender]


def _sender(message: Incoming) -> str:
    """Return all of the topic but its kind: one device's."""
    return message.topic.rpartition("/")[0]
