"""What Prometheus scrapes: read from the database and the counters at each scrape, never kept twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlmodel import col, func, select

from server.db.engine import Database
from server.db.tables import Action, Device, Rollout
from server.services.health import Health


class Metrics(Collector):
    """Renders the server's metrics."""

    def __init__(self, database: Database, health: Health) -> None:
        """Keep where to read."""
        self._database: Final = database
        self._health: Final = health
        self._registry: Final = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Return Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Name nothing ahead: registering must not read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each family."""
        up = GaugeMetricFamily("kedge_part_up", "Whether a part of the server works.", labels=["part"])
        for part in self._health.parts():
            up.add_metric([part.name], float(part.ok))
        yield up
        counted = CounterMetricFamily("kedge_events", "What was counted since the start.", labels=["kind"])
        for name, count in sorted(self._health.counts().items()):
            counted.add_metric([name], count)
        yield counted
        yield from self._tables()

    def _tables(self) -> Iterator[Metric]:
        with self._database.read() as session:
            devices = session.exec(select(Device.online, func.count()).group_by(col(Device.online))).all()
            rollouts = session.exec(select(Rollout.state, func.count()).group_by(Rollout.state)).all()
            actions = session.exec(select(Action.status, func.count()).group_by(Action.status)).all()
        yield _gauge(
            "kedge_devices", "Enrolled devices.", "online", [(str(x).lower(), n) for x, n in devices]
        )
        yield _gauge("kedge_rollouts", "Rollouts by state.", "state", list(rollouts))
        yield _gauge("kedge_actions", "Devices' parts in rollouts by status.", "status", list(actions))


def _gauge(name: str, text: str, label: str, values: list[tuple[str, int]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values:
        family.add_metric([value], count)
    return family
