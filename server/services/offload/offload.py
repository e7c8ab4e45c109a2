"""Answering one hard request: which pool, the call, failing over, and what it cost."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from sqlmodel import col, func, select

from fleet.offload.breaker import Outcome
from fleet.offload.routing import Ask, Choice, Load, Policy, Refusal, route
from fleet.wire.messages import Answer, HardRequest, Tensor
from fleet.wire.tensors import to_array
from server.db.engine import Database
from server.db.offload_tables import OffloadRow
from server.db.tables import BundleRow
from server.ports.accelerators import Accelerator, AcceleratorError, Connect, Inference
from server.ports.clock import Clock
from server.services.offload.offload_queue import Job
from server.services.offload.pools import Pools, PoolSpec

_LONGEST_CALL: Final = 30.0
_SMOOTHING: Final = 0.2
_DAY: Final = 86400.0


class Later(NamedTuple):
    """There is no answer yet, and trying again may help."""

    reason: str


class Loads:
    """What is known of each pool now, shared by the threads that use them."""

    def __init__(self, clock: Clock) -> None:
        """Know nothing."""
        self._clock: Final = clock
        self._lock: Final = threading.Lock()
        self._loads: Final[dict[str, Load]] = {}

    def snapshot(self) -> dict[str, Load]:
        """Return the loads by pool."""
        with self._lock:
            return dict(self._loads)

    def choose(self, ask: Ask, specs: Sequence[PoolSpec], policy: Policy) -> Choice | Refusal:
        """Route a request and count it at its pool, in one step, so that two threads see each other."""
        with self._lock:
            choice = route(ask, [x.pool for x in specs], self._loads, policy, self._clock.now())
            if isinstance(choice, Choice):
                self._update(choice.pool, Outcome.STARTED, more=1)
            return choice

    def done(self, pool: str, outcome: Outcome, seconds: float) -> None:
        """Note how a call ended; only a good one says how long calls take."""
        with self._lock:
            self._update(pool, outcome, more=-1)
            if outcome is Outcome.SUCCEEDED:
                load = self._loads[pool]
                smooth = load.service_seconds + _SMOOTHING * (seconds - load.service_seconds)
                self._loads[pool] = msgspec.structs.replace(load, service_seconds=smooth)

    def _update(self, pool: str, outcome: Outcome, more: int) -> None:
        load = self._loads.get(pool, Load())
        self._loads[pool] = msgspec.structs.replace(
            load,
            in_flight=load.in_flight + more,
            breaker=load.breaker.after(outcome, self._clock.now()),
        )


class Offload:
    """Answers hard requests with the pools that there are."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        pools: Pools,
        connect: Connect,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep what to ask; `stopwatch` measures calls."""
        self.loads: Final = Loads(clock)
        self._database: Final = database
        self._clock: Final = clock
        self._pools: Final = pools
        self._connect: Final = connect
        self._stopwatch: Final = stopwatch
        self._lock: Final = threading.Lock()
        self._clients: Final[dict[str, Accelerator]] = {}

    def answer(self, job: Job) -> Answer | Later:
        """Have one request answered; a pool that fails is followed by the next best."""
        request = job.request
        specs = {x.pool.name: x for x in self._pools.all()}
        policy = self._pools.policy().at(self.spent_today())
        ask = Ask(model=request.model, data_class=request.data_class, expires=job.deadline)
        failures: dict[str, str] = {}
        while True:
            left = [x for x in specs.values() if x.pool.name not in failures]
            choice = self.loads.choose(ask, left, policy)
            if isinstance(choice, Refusal):
                return self._nowhere(job, choice, failures)
            try:
                return self._call(job, specs[choice.pool], choice)
            except AcceleratorError as error:
                if not error.passing:
                    return _refused(request, f"{choice.pool}: {error}")
                failures[choice.pool] = str(error)

    def spent_today(self) -> float:
        """Return the money spent since midnight, UTC."""
        now = self._clock.now()
        query = select(func.sum(OffloadRow.cost)).where(col(OffloadRow.finished_at) >= now - now % _DAY)
        with self._database.read() as session:
            return float(session.exec(query).one() or 0.0)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def _nowhere(self, job: Job, refusal: Refusal, failures: dict[str, str]) -> Answer | Later:
        if self._clock.now() >= job.deadline:
            return _refused(job.request, "expired")
        reasons = {**refusal.reasons, **failures}
        words = (
            "; ".join(f"{pool}: {reason}" for pool, reason in sorted(reasons.items())) or "there is no pool"
        )
        return Later(words) if refusal.passing or failures else _refused(job.request, words)

    def _call(self, job: Job, spec: PoolSpec, choice: Choice) -> Answer:
        model, _, version = choice.cloud_model.partition(":")
        timeout = min(job.deadline - self._clock.now(), _LONGEST_CALL)
        started = self._stopwatch()
        outcome = Outcome.FAILED
        try:
            inference = self._client(spec.url).infer(
                model, version, job.request.inputs, request_id=job.request.id, timeout=timeout
            )
            outcome = Outcome.SUCCEEDED
        except AcceleratorError as error:
            # a request that is itself at fault says nothing against the pool
            outcome = Outcome.FAILED if error.passing else Outcome.SUCCEEDED
            raise
        finally:
            seconds = self._stopwatch() - started
            self.loads.done(choice.pool, outcome, seconds)
        return self._answer(job.request, spec, choice, inference, seconds)

    def _answer(
        self, request: HardRequest, spec: PoolSpec, choice: Choice, inference: Inference, seconds: float
    ) -> Answer:
        share = seconds / spec.pool.capacity
        return Answer(
            id=request.id,
            model=request.model,
            outputs=inference.outputs,
            label=label_of(inference.outputs, self._scores_output(request.bundle)),
            pool=choice.pool,
            region=spec.pool.region,
            cloud_model=choice.cloud_model,
            cost=spec.pool.price_per_hour / 3600.0 * share,
            joules=spec.pool.watts * share,
        )

    def _client(self, url: str) -> Accelerator:
        with self._lock:
            if url not in self._clients:
                self._clients[url] = self._connect(url)
            return self._clients[url]

    def _scores_output(self, bundle: str) -> str:
        with self._database.read() as session:
            row = session.get(BundleRow, bundle)
        offload = row.description.get("offload") if row is not None else None
        return str(offload.get("output", "")) if isinstance(offload, dict) else ""


def _refused(request: HardRequest, error: str) -> Answer:
    return Answer(id=request.id, model=request.model, error=error)


def label_of(outputs: Sequence[Tensor], name: str) -> int:
    """Return the most likely class of a single sample's answer, or -1 when it is no classifier's.

    Args:
        outputs: the answer.
        name: the output with the class scores; "" or one that is not there: the only output there is.
    """
    named = [x for x in outputs if x.name == name] or (list(outputs) if len(outputs) == 1 else [])
    if not named:
        return -1
    tensor = named[0]
    if not tensor.shape or tensor.shape[-1] < 2 or math.prod(tensor.shape) != tensor.shape[-1]:  # noqa: PLR2004 - classes
        return -1
    values = to_array(tensor)
    return int(values.argmax()) if np.isfinite(values).all() else -1
