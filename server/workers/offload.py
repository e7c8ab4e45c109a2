"""The worker that has hard requests answered and sends the answers to the devices."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from fleet.wire import codec, topics
from fleet.wire.messages import Answer
from server.ports.broker import Publisher
from server.services.live import Live
from server.services.offload.offload import Later, Offload
from server.services.offload.offload_queue import Delivery, Job, OffloadQueue
from server.workers.supervisor import Worker

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
        self._pool: Final = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="offload")
        self._running: Final[dict[Future[Answer | Later], Job]] = {}
        self._steps = 0
        self._worker: Final = Worker("offload", self._step, _TICK)
        queue.on_arrival(self._worker.wake)

    def start(self) -> None:
        """Take up what the last run left, and begin."""
        self._queue.recover()
        self._worker.start()

    def stop(self) -> None:
        """Finish the calls under way, and stop; what is queued stays queued."""
        self._worker.stop()
        self._pool.shutdown()
        try:
            self._collect()
        finally:
            self._offload.close()

    def health(self) -> str:
        """Return "" when it works, or what is wrong."""
        return self._worker.health()

    def _step(self) -> None:
        self._collect()
        for job in self._queue.take(CONCURRENCY - len(self._running)):
            future = self._pool.submit(self._work, job)
            self._running[future] = job
            future.add_done_callback(lambda _: self._worker.wake())
        self._deliver()
        self._steps += 1
        if self._steps % _PURGE_EVERY == 0:
            self._queue.purge()

    def _work(self, job: Job) -> Answer | Later:
        try:
            return self._offload.answer(job)
        except Exception as error:  # the thread's boundary: logged, and tried again
            LOG.exception("offload of %s", job.request.id)
            return Later(f"{type(error).__name__}: {error}")

    def _collect(self) -> None:
        """Store what the calls gave; where that fails, the next step tries again."""
        for future in [x for x in self._running if x.done()]:
            self._store(self._running[future], future.result())
            del self._running[future]

    def _store(self, job: Job, answer: Answer | Later) -> None:
        if isinstance(answer, Later):
            self._queue.put_back(job, answer.reason)
            return
        self._queue.finish(job, answer)
        self._live.publish(
            "offload",
            {"device": job.device, "model": answer.model, "pool": answer.pool, "error": answer.error},
        )

    def _deliver(self) -> None:
        taken: list[Delivery] = []
        try:
            for delivery in self._queue.undelivered():
                payload = codec.encode(delivery.answer)
                self._publisher.publish(topics.reply(delivery.device), payload, retain=False)
                taken.append(delivery)
        finally:
            if taken:
                self._queue.delivered(taken)
