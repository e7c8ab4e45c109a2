"""The same server on PostgreSQL: migrations, a whole rollout, repeated reports, and one poisonous message."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from sqlmodel import select

from fleet.ids import DeviceId
from fleet.wire import codec, topics
from fleet.wire.messages import UpdateEvent, UpdateState
from postgres import cluster
from server.db.migrate import differences, upgrade
from server.db.tables import Report
from server.ports.messaging import Incoming
from server.services.devices.devices import DeviceFilter
from server.services.people.roles import SYSTEM
from server.settings import Settings
from server_parts import Parts, parts
from sim_devices import report_of

pytest.importorskip("psycopg", reason="the postgres extra is not installed: pip install 'kedge[postgres]'")


@pytest.fixture(scope="module")
def kedge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("postgres")
    with cluster() as url:
        made = parts(folder, Settings(data=folder, database=url).database_url)
        yield made
        made.database.close()


def test_the_migrations_make_the_declared_tables_and_may_run_again(kedge: Parts) -> None:
    upgrade(kedge.database)
    assert differences(kedge.database) == []
    assert kedge.database.ping() == ""


def test_a_rollout_runs_and_reports_are_stored_once(kedge: Parts) -> None:
    assert kedge.accounts.first_start() is not None
    kedge.add_devices("dev-a", "dev-b")
    kedge.devices.label(SYSTEM, "dev-a", {"site": "north"})
    assert kedge.devices.find(DeviceFilter(labels={"site": "north"}))[1] == 1
    rollout = kedge.roll_out(kedge.release("v1"), 1)
    for _ in range(2):
        for action in kedge.rollout_views.actions(rollout, status="assigned"):
            event = UpdateEvent(
                id=f"e-{action.device_id}", rollout=str(rollout), model="digits", bundle=action.bundle,
                state=UpdateState.COMMITTED, time=0.0, boot_id="b", monotonic=0.0,
            )  # fmt: skip
            kedge.ingest.handle([Incoming(topics.event(DeviceId(action.device_id)), codec.encode(event))] * 2)
        kedge.ticker.tick()
    assert kedge.state(rollout) == "finished"
    topic = topics.report(DeviceId("dev-a"))
    good = codec.encode(report_of("r-1", "boot", 0.0))
    huge = codec.encode(msgspec.structs.replace(report_of("r-2", "boot", 60.0), counters={"requests": 2**40}))
    kedge.ingest.handle([Incoming(topic, good), Incoming(topic, huge), Incoming(topic, good)])
    with kedge.database.read() as session:
        assert [row.window_start for row in session.exec(select(Report))] == [0.0]
    assert kedge.health.counts()["malformed_messages"] == 1
