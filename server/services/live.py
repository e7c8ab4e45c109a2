"""What is happening now, for whoever watches: a small in-process bus behind the console's event stream."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from typing import Final, NamedTuple

#: A watcher that is this many happenings behind loses the oldest: it shows the present, not a log.
BACKLOG: Final = 256


class Happening(NamedTuple):
    """One thing that happened: `topic` such as "device" or "rollout", and a small JSON object."""

    topic: str
    payload: dict[str, object]


class Subscription:
    """One watcher's view. Use it as a context manager, or close it."""

    def __init__(self, live: Live, topics: frozenset[str]) -> None:
        """Watch these topics; all of them when empty."""
        self._live: Final = live
        self._topics: Final = topics
        self._queue: Final[queue.Queue[Happening]] = queue.Queue(BACKLOG)
        self._lock: Final = threading.Lock()

    def offer(self, happening: Happening) -> None:
        """Take a happening if it is of a watched topic, dropping the oldest when full."""
        if self._topics and happening.topic not in self._topics:
            return
        with self._lock:
            if self._queue.full():
                with contextlib.suppress(queue.Empty):  # the watcher took it just now
                    self._queue.get_nowait()
            self._queue.put_nowait(happening)

    def next(self, timeout: float) -> Happening | None:
        """Wait for the next happening and return it, or None after `timeout` seconds."""
        try:
            return self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop watching."""
        self._live.forget(self)

    def __enter__(self) -> Subscription:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self.close()


class Live:
    """Carries happenings from any thread to any number of watchers."""

    def __init__(self) -> None:
        """Begin with nobody watching."""
        self._lock: Final = threading.Lock()
        self._watchers: frozenset[Subscription] = frozenset()

    def publish(self, topic: str, payload: Mapping[str, object]) -> None:
        """Tell every watcher; never blocks, callable from any thread."""
        happening = Happening(topic, dict(payload))
        for watcher in self._watchers:
            watcher.offer(happening)

    def subscribe(self, *topics: str) -> Subscription:
        """Begin to watch these topics; all of them when none is named."""
        watcher = Subscription(self, frozenset(topics))
        with self._lock:
            self._watchers |= {watcher}
        return watcher

    def forget(self, watcher: Subscription) -> None:
        """Stop telling the watcher."""
        with self._lock:
            self._watchers -= {watcher}
