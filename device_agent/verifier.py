"""Verifies assignments on a thread of its own, for it may have to fetch metadata and wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from device_agent.adapters.trust_client import TrustClient
from device_agent.errors import StorageError, UnreachableError
from device_agent.ports import Clock
from fleet.errors import TrustError
from fleet.trust.assignment import Assignment

_LOG: Final = logging.getLogger(__name__)
_RETRY: Final = 5.0

Result: TypeAlias = Assignment | TrustError


class Verifier:
    """Takes the newest assignment's bytes, and hands on what they prove to be."""

    def __init__(
        self,
        trust: TrustClient,
        clock: Clock,
        counters: Callable[[], dict[str, int]],
        post: Callable[[Result], None],
    ) -> None:
        """Start to wait for assignments; `counters` returns the committed release counters by model."""
        self._trust: Final = trust
        self._clock: Final = clock
        self._counters: Final = counters
        self._post: Final = post
        self._changed: Final = threading.Condition()
        self._newest: bytes | None = None
        self._kit: Callable[[], None] | None = None
        self._stopped = False
        self._thread: Final = threading.Thread(target=self._run, name="verify", daemon=True)
        self._thread.start()

    def submit(self, data: bytes) -> None:
        """Verify these bytes; older ones that still wait are dropped."""
        with self._changed:
            self._newest = data
            self._changed.notify_all()

    def submit_kit(self, take: Callable[[], None]) -> None:
        """Have a kit taken between two assignments: the trusted state is for one at a time."""
        with self._changed:
            self._kit = take
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread; one that waits for the network ends with the process."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._stopped:
                    return
                take, self._kit = self._kit, None
                data, self._newest = (self._newest, None) if take is None else (None, self._newest)
            if take is not None:
                take()
            elif data is not None and not self._verify(data):
                self._again(data)

    def _has_work(self) -> bool:
        return self._stopped or self._newest is not None or self._kit is not None

    def _verify(self, data: bytes) -> bool:
        """Return whether the bytes are judged: without metadata they cannot be."""
        try:
            self._post(self._trust.accept(data, self._counters(), self._clock.now()))
        except TrustError as error:
            self._post(error)
        except (UnreachableError, StorageError) as error:
            _LOG.info("the assignment cannot be verified now: %s", error)
            return False
        except Exception as error:  # noqa: BLE001 - who finds a fault in here must not end the updates with it
            _LOG.exception("the assignment could not be judged")
            self._post(TrustError(f"assignment: {type(error).__name__}: {error}", reason="malformed"))
        return True

    def _again(self, data: bytes) -> None:
        with self._changed:
            self._changed.wait_for(self._has_work, _RETRY)
            if self._newest is None:
                self._newest = data
