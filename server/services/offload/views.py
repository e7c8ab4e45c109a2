"""Is the cloud earning its money? What the console and the API show of offload."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec
from sqlmodel import Session, col, func, or_, select

from fleet.offload.breaker import BreakerState
from fleet.offload.routing import Load, Pool
from server.db.engine import Database
from server.db.offload_tables import OffloadRow
from server.db.tables import Report
from server.ports.clock import Clock
from server.services.offload.offload import Offload
from server.services.offload.offload_queue import OffloadState
from server.services.offload.pools import OffloadPolicy, Pools

DAY: Final = 86400.0


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """One pool now, and what it did in the window.

    Attributes:
        breaker: "closed" takes requests, "open" rests after failures, "probing" tries again.
        service_ms: what a call takes, as measured lately; None before the first.
    """

    pool: Pool
    url: str
    breaker: BreakerState
    in_flight: int
    service_ms: float | None
    answered: int
    cost: float
    joules: float


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model's hard requests in the window.

    Attributes:
        requests: all that devices answered, as their reports say; 0 before the first report.
        received: hard requests that reached the server.
        answered, refused, waiting: what became of those.
        share: received / requests, None before the first report.
        disagreed: share of answers where the cloud's class differs from the device's; None before the first.
    """

    model: str
    requests: int
    received: int
    answered: int
    refused: int
    waiting: int
    share: float | None
    disagreed: float | None


class OffloadView(msgspec.Struct, frozen=True, kw_only=True):
    """Offload at a glance.

    Attributes:
        since: the window's begin.
        oldest_waiting_seconds: how long the oldest open request waits, None when none does.
        undelivered: answers that the broker has not taken yet.
        spent_today: money since midnight, UTC.
        mean_wait_seconds: from arrival to answer, None before the first.
    """

    since: float
    waiting: int
    oldest_waiting_seconds: float | None
    undelivered: int
    mean_wait_seconds: float | None
    spent_today: float
    joules: float
    policy: OffloadPolicy
    models: list[ModelView]
    pools: list[PoolView]


class OffloadViews:
    """Reads what is stored and what the running worker knows."""

    def __init__(self, database: Database, clock: Clock, pools: Pools, offload: Offload) -> None:
        """Keep what to read."""
        self._database: Final = database
        self._clock: Final = clock
        self._pools: Final = pools
        self._offload: Final = offload

    def overview(self, window: float = DAY) -> OffloadView:
        """Return everything about the last `window` seconds."""
        now = self._clock.now()
        since = now - window
        with self._database.read() as session:
            oldest = session.exec(
                select(func.min(OffloadRow.received_at)).where(col(OffloadRow.finished_at).is_(None))
            ).one()
            mean_wait = session.exec(
                select(func.avg(col(OffloadRow.finished_at) - col(OffloadRow.received_at))).where(
                    col(OffloadRow.finished_at) >= since, OffloadRow.state == OffloadState.ANSWERED.value
                )
            ).one()
            models = _models(session, since)
            done = _by_pool(session, since)
            undelivered = session.exec(
                select(func.count()).where(
                    col(OffloadRow.finished_at).is_not(None), col(OffloadRow.delivered).is_(False)
                )
            ).one()
        return OffloadView(
            since=since,
            waiting=sum(x.waiting for x in models),
            oldest_waiting_seconds=None if oldest is None else max(now - oldest, 0.0),
            undelivered=undelivered,
            mean_wait_seconds=mean_wait,
            spent_today=self._offload.spent_today(),
            joules=sum(joules for _, _, joules in done.values()),
            policy=self._pools.policy(),
            models=models,
            pools=self._pool_views(done),
        )

    def _pool_views(self, done: dict[str, tuple[int, float, float]]) -> list[PoolView]:
        loads = self._offload.loads.snapshot()
        views = []
        for spec in self._pools.all():
            load = loads.get(spec.pool.name)
            answered, cost, joules = done.get(spec.pool.name, (0, 0.0, 0.0))
            views.append(
                PoolView(
                    pool=spec.pool,
                    url=spec.url,
                    breaker=(load or Load()).breaker.state,
                    in_flight=(load or Load()).in_flight,
                    service_ms=None if load is None else load.service_seconds * 1000.0,
                    answered=answered,
                    cost=cost,
                    joules=joules,
                )
            )
        return views


def _by_pool(session: Session, since: float) -> dict[str, tuple[int, float, float]]:
    query = (
        select(OffloadRow.pool, func.count(), func.sum(OffloadRow.cost), func.sum(OffloadRow.joules))
        .where(col(OffloadRow.finished_at) >= since, OffloadRow.pool != "")
        .group_by(OffloadRow.pool)
    )
    return {pool: (count, cost or 0.0, joules or 0.0) for pool, count, cost, joules in session.exec(query)}


def _models(session: Session, since: float) -> list[ModelView]:
    states: dict[str, Counter[str]] = {}
    counted = (
        select(OffloadRow.model, OffloadRow.state, func.count())
        .where(or_(OffloadRow.received_at >= since, col(OffloadRow.finished_at).is_(None)))
        .group_by(OffloadRow.model, OffloadRow.state)
    )
    for model, state, count in session.exec(counted):
        states.setdefault(model, Counter())[state] = count
    compared = (
        select(OffloadRow.model, col(OffloadRow.label) != col(OffloadRow.provisional), func.count())
        .where(
            OffloadRow.received_at >= since,
            OffloadRow.state == OffloadState.ANSWERED.value,
            OffloadRow.label >= 0,
            OffloadRow.provisional >= 0,
        )
        .group_by(OffloadRow.model, col(OffloadRow.label) != col(OffloadRow.provisional))
    )
    verdicts: dict[str, Counter[bool]] = {}
    for model, differs, count in session.exec(compared):
        verdicts.setdefault(model, Counter())[bool(differs)] = count
    requests = _requests(session, since)
    return [
        _model(name, states.get(name, Counter()), verdicts.get(name, Counter()), requests.get(name, 0))
        for name in sorted(set(states) | set(requests))
    ]


def _requests(session: Session, since: float) -> dict[str, int]:
    query = (
        select(Report.model, func.sum(Report.requests))
        .where(Report.received_at >= since)
        .group_by(Report.model)
    )
    return {model: int(count or 0) for model, count in session.exec(query)}


def _model(name: str, states: Counter[str], verdicts: Counter[bool], requests: int) -> ModelView:
    received, compared = states.total(), verdicts.total()
    return ModelView(
        model=name,
        requests=requests,
        received=received,
        answered=states[OffloadState.ANSWERED.value],
        refused=states[OffloadState.REFUSED.value],
        waiting=states[OffloadState.QUEUED.value] + states[OffloadState.RUNNING.value],
        share=received / requests if requests else None,
        disagreed=verdicts[True] / compared if compared else None,
    )
