"""The worker that has hard requests answered and sends the answers to the devices."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from fleet.wire import codec, topics
from server.errors import BrokerError
from server.ports.broker import Publisher
from server.services.live import Live
from server.services.offload import Later, Offload
from server.services.offload_queue import Job, OffloadQueue

LOG: Final = logging.getLogger("kedge.offload")
#: Requests that are worked on at once.
CONCURRENCY: Final = 8
_TICK: Final = 0.25
_PURGE_EVERY: Final = int(3600 / _TICK)


class OffloadWorker:
    """One thread that hands out requests, and a few that wait for accelerators."""

    def __init__(self, queue: OffloadQueue, offload: Offload, publisher: Publisher, live: Live) -> None:
        """Prepare it; nothing runs yet."""
        self._queue: Final = queue
        self._offload: Final = offload
        self._publisher: Final = publisher
        self._live: Final = live
        self._stopping: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="offload", daemon=True)
        self._running: Final[set[Future[None]]] = set()
        self._failure = ""

    def start(self) -> None:
        """Take up what the last run left, and begin."""
        self._queue.recover()
        self._thread.start()

    def stop(self) -> None:
        """Finish the calls under way, and stop; what is queued stays queued."""
        self._stopping.set()
        self._queue.arrived.set()
        if self._thread.is_alive():
            self._thread.join()
        self._offload.close()

    def health(self) -> str:
        """Return "" when it works, or what is wrong."""
        return self._failure or ("" if self._thread.is_alive() else "not running")

    def _run(self) -> None:
        with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="offload") as pool:
            round_number = 0
            while not self._stopping.is_set():
                self._queue.arrived.wait(_TICK)
                self._queue.arrived.clear()
                round_number += 1
                try:
                    self._round(pool)
                    if round_number % _PURGE_EVERY == 0:
                        self._queue.purge()
                    self._failure = ""
                except Exception as error:  # the worker's edge: a locked or full database must not end it
                    LOG.exception("offload")
                    self._failure = f"{type(error).__name__}: {error}"

    def _round(self, pool: ThreadPoolExecutor) -> None:
        self._running.difference_update([x for x in self._running if x.done()])
        for job in self._queue.take(CONCURRENCY - len(self._running)):
            self._running.add(pool.submit(self._work, job))
        self._deliver()

    def _work(self, job: Job) -> None:
        try:
            answer = self._offload.answer(job)
        except Exception as error:  # the thread's edge: one odd request must not stay "running" for ever
            LOG.exception("offload of %s", job.request.id)
            self._queue.put_back(job, f"{type(error).__name__}: {error}")
            return
        if isinstance(answer, Later):
            self._queue.put_back(job, answer.reason)
            return
        self._queue.finish(job, answer)
        self._live.publish(
            "offload",
            {"device": job.device, "model": answer.model, "pool": answer.pool, "error": answer.error},
        )
        self._queue.arrived.set()

    def _deliver(self) -> None:
        try:
            for delivery in self._queue.undelivered():
                payload = codec.encode(delivery.answer)
                self._publisher.publish(topics.reply(delivery.device), payload, retain=False)
                self._queue.delivered(delivery)
        except BrokerError as error:
            LOG.info("answers wait for the broker: %s", error)
