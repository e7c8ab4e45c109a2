"""Which chunks to ask for next, what to make of what arrives, and when to ask again. Pure: time is passed in.

At most `window` chunks are under way, so that neither the broker's queue nor the device's memory overflows: a
broker silently drops what its queue does not hold. A chunk that does not come is asked for again, with longer
and longer patience; being offline is no fault. A chunk with wrong bytes is asked for again too, but only so
often: then somebody is tampering, or the server is broken.

On a slow line the last chunk of a window waits for all before it. So a chunk is late only when nothing at all
came for as long as it is waited for, or when it was overtaken for several times that long.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from device_agent.update.token_bucket import TokenBucket
from fleet.bundle.chunks import Chunk
from fleet.errors import BundleError
from fleet.ids import Digest

WINDOW: Final = 16
#: So many times its patience a chunk may be overtaken by others.
_OVERTAKEN: Final = 6


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds, and how often to take wrong bytes.

    Attributes:
        first: for a chunk at first; doubled each time, up to `longest`.
        between_bad: before a chunk that came with wrong bytes is asked for again.
        bad_limit: so many times wrong bytes for one chunk are a fault.
    """

    first: float = 10.0
    longest: float = 120.0
    between_bad: float = 1.0
    bad_limit: int = 3


class _Open(msgspec.Struct):
    """A chunk that has not come yet."""

    chunk: Chunk
    wait: float
    until: float = 0.0
    asked_at: float = 0.0
    overdue: int = 0
    bad: int = 0


class ChunkPlan:
    """One download's chunks. All digests that go in and out are chunks'."""

    def __init__(
        self,
        chunks: Iterable[Chunk],
        window: int = WINDOW,
        patience: Patience | None = None,
        bucket: TokenBucket | None = None,
    ) -> None:
        """Plan to get these chunks; one that stands twice is fetched once."""
        self._patience: Final = patience or Patience()
        self._bucket: Final = bucket or TokenBucket()
        self._last_taken = -math.inf
        self._window: Final = window
        self._open: Final = {c.digest: _Open(chunk=c, wait=self._patience.first) for c in chunks}
        self._queue: Final = deque(self._open)
        self._asked: Final[set[Digest]] = set()

    @property
    def done(self) -> bool:
        """Whether every chunk has come."""
        return not self._open

    @property
    def asked(self) -> frozenset[Digest]:
        """The chunks that are under way."""
        return frozenset(self._asked)

    def size_of(self, digest: Digest) -> int:
        """Return the bytes of a chunk that is still open."""
        return self._open[digest].chunk.size

    def ask(self, now: float, may: Callable[[Digest], bool] = lambda _digest: True) -> list[Digest]:
        """Return the chunks to ask for now; only those that `may` allows, and only as fast as allowed.

        They are asked for half a window at a time: fewer packets, and the other half keeps the line busy.
        """
        room = self._window - len(self._asked)
        if self._asked and room < self._window // 2:
            return []
        ready = (digest for digest in self._queue if self._open[digest].until <= now and may(digest))
        asked = []
        for digest in itertools.islice(ready, room):
            if not self._bucket.take(self._open[digest].chunk.size, now):
                break
            asked.append(digest)
        for digest in asked:
            self._queue.remove(digest)
            self._asked.add(digest)
            waiting = self._open[digest]
            waiting.asked_at, waiting.until = now, now + waiting.wait
        return asked

    def take(self, digest: Digest, data: bytes, now: float) -> bool | None:
        """Judge what arrived.

        Returns:
            True: it is the chunk, to be stored. False: wrong bytes, which will be asked for again. None: not
            expected now, a repetition.

        Raises:
            BundleError: wrong bytes came too often.
        """
        if digest not in self._asked:
            return None
        waiting = self._open[digest]
        self._asked.remove(digest)
        if len(data) == waiting.chunk.size and hashlib.sha256(data).hexdigest() == digest.hex:
            del self._open[digest]
            self._last_taken = now
            return True
        waiting.bad += 1
        if waiting.bad >= self._patience.bad_limit:
            raise BundleError(f"chunk {digest}: wrong bytes {waiting.bad} times")
        waiting.until = now + self._patience.between_bad
        self._queue.append(digest)
        return False

    def overdue(self, now: float) -> list[Digest]:
        """Return the chunks that did not come in time; they will be asked for again at once."""
        late = [digest for digest in self._asked if self._due(self._open[digest]) <= now]
        for digest in late:
            waiting = self._open[digest]
            waiting.overdue += 1
            waiting.wait = min(waiting.wait * 2, self._patience.longest)
            waiting.until = now
            self._asked.remove(digest)
            self._queue.append(digest)
        return late

    def give_back(self, digest: Digest) -> None:
        """Take a chunk as not asked for: whoever was asked said at once that it does not have it."""
        if digest in self._asked:
            self._asked.remove(digest)
            self._open[digest].until = 0.0
            self._queue.append(digest)

    def times_overdue(self, digest: Digest) -> int:
        """Return how often a chunk that is still open did not come in time."""
        return self._open[digest].overdue

    def next_time(self, now: float) -> float:
        """Return when something is to be done though nothing arrives, at the latest."""
        times = [self._due(self._open[digest]) for digest in self._asked]
        times += (self._open[digest].until for digest in itertools.islice(self._queue, self._window))
        times.append(self._bucket.ready_at(now))
        return min((time for time in times if time > now), default=now)

    def _due(self, waiting: _Open) -> float:
        """Return when a chunk that was asked for is late."""
        patient = max(waiting.until, self._last_taken + waiting.wait)
        return min(patient, waiting.asked_at + _OVERTAKEN * waiting.wait)
