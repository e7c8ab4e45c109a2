"""The worker between the broker's connection and the ingest service: a bounded queue, taken in batches.

What a device gets neither room nor an allowance for is dropped and not acknowledged: an honest one sends it
again, a little later each time (ADR 0137).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fleet.wire import topics
from server.ports.messaging import Connection, Incoming
from server.services.health import Health
from server.services.reports.allowance import Allowance
from server.services.reports.ingest import Ingest
from server.workers.supervisor import Worker

#: Messages waiting; beyond it the newest are dropped, and devices send them again.
CAPACITY: Final = 50_000
#: Of these, no device has more than so many: one that floods makes only itself wait.
SHARE: Final = CAPACITY // 25
#: Bytes waiting, of all devices and of one: messages may have four megabytes.
CAPACITY_BYTES: Final = 256 * 1024 * 1024
SHARE_BYTES: Final = CAPACITY_BYTES // 16
#: What the server stores for long; a request's bytes go when it is answered, and have a bound of their own.
_STORED: Final = frozenset({"report", "event"})
_ROW_ONLY: Final = frozenset({"request"})
#: Messages in one transaction.
BATCH: Final = 1000
_WAIT: Final = 0.2


class IngestWorker:
    """Feeds the ingest service."""

    def __init__(
        self, connection: Connection, ingest: Ingest, health: Health, allowance: Allowance | None = None
    ) -> None:
        """Subscribe to everything that devices send; `allowance` bounds what each has stored."""
        self._queue: Final[queue.Queue[Incoming]] = queue.Queue(CAPACITY)
        self._ingest: Final = ingest
        self._health: Final = health
        self._left: list[Incoming] = []
        self._lock: Final = threading.Lock()
        self._allowance: Final = allowance or Allowance(time.monotonic)
        self._waiting: Final[Counter[str]] = Counter()
        self._bytes: Final[Counter[str]] = Counter()
        self._all_bytes = 0
        self.worker: Final = Worker("ingest", self.step, 0.0)
        for kind in topics.UPLINK:
            connection.subscribe(topics.uplink_filter(kind), self.receive)

    def receive(self, message: Incoming) -> None:
        """Take a message from the connection's thread; never blocks it."""
        sender, size = _sender(message), len(message.payload)
        with self._lock:
            if not self._fits(sender, size):
                self._health.count("dropped_messages")
                return
            if not self._allowed(sender, message):
                self._health.count("messages_over_allowance")
                return
            self._waiting[sender] += 1
            self._bytes[sender] += size
            self._all_bytes += size
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

    def _fits(self, sender: str, size: int) -> bool:
        share = self._bytes.get(sender, 0) + size <= SHARE_BYTES and self._waiting.get(sender, 0) < SHARE
        return share and self._all_bytes + size <= CAPACITY_BYTES

    def _allowed(self, sender: str, message: Incoming) -> bool:
        kind = message.topic.rpartition("/")[2]
        if kind in _ROW_ONLY:
            return self._allowance.take(sender, 0)
        return kind not in _STORED or self._allowance.take(sender, len(message.payload))

    def _taken(self, messages: Sequence[Incoming]) -> None:
        with self._lock:
            for message in messages:
                sender, size = _sender(message), len(message.payload)
                self._waiting[sender] -= 1
                self._bytes[sender] -= size
                self._all_bytes -= size
                if not self._waiting[sender]:
                    del self._waiting[sender], self._bytes[sender]


def _sender(message: Incoming) -> str:
    """Return all of the topic but its kind: one device's."""
    return message.topic.rpartition("/")[0]
