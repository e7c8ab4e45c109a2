"""A stolen device with a valid certificate tries to fill the server's memory and disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlmodel import func, select

from fleet.wire import codec, topics
from fleet.wire.messages import Hello, ModelSlot, RefusalEvent
from server.db.offload_tables import OffloadRow
from server.db.tables import DeviceModel, Refusal, Report
from server.ports.messaging import Incoming
from server.services.offload.offload_queue import OffloadState
from server.services.reports.allowance import Allowance
from server.services.reports.message_checks import MOST_SLOTS
from server.services.reports.tidying import Tidying
from server.workers.ingest import SHARE_BYTES, IngestWorker
from server_parts import Parts, parts
from sim_devices import TARGET, report_of


@pytest.fixture
def kedge(tmp_path: Path) -> Parts:
    found = parts(tmp_path)
    found.add_devices("stolen", "honest")
    return found


def _report(device: str, number: int) -> Incoming:
    body = codec.encode(report_of(f"r{number}", "boot", float(number)))
    return Incoming(f"{topics.DEVICE}/{device}/report", body)


def _reports(kedge: Parts, device: str) -> int:
    with kedge.database.read() as session:
        return int(session.exec(select(func.count()).where(Report.device_id == device)).one())


def test_few_large_messages_fill_no_memory(kedge: Parts) -> None:
    """It sends hard requests of four megabytes, faster than they are stored: 2,000 of them would be 8 GB."""
    worker = IngestWorker(kedge.connection, kedge.ingest, kedge.health)
    large = Incoming(f"{topics.DEVICE}/stolen/request", bytes(codec.LIMIT))
    for _ in range(20):
        worker.receive(large)
    assert kedge.health.counts()["dropped_messages"] == 20 - SHARE_BYTES // codec.LIMIT
    hello = Hello(boot_id="b", agent_version="1", target=TARGET, time=1.0, monotonic=1.0)
    worker.receive(Incoming(f"{topics.DEVICE}/honest/hello", codec.encode(hello)))
    worker.step()
    assert kedge.devices.get("honest").online
    worker.receive(large)
    assert kedge.health.counts()["dropped_messages"] == 20 - SHARE_BYTES // codec.LIMIT, "there is room again"


def test_who_reports_without_end_has_little_of_it_stored(kedge: Parts) -> None:
    """It makes reports up, each with an id of its own, day and night; the disk would be full in an hour.

    What is over its allowance is dropped and not acknowledged. Another device's reports are all stored, and
    an honest one that has been offline for long sends again what did not fit.
    """
    now = [0.0]
    allowance = Allowance(lambda: now[0], burst=100_000, rate=100.0)
    worker = IngestWorker(kedge.connection, kedge.ingest, kedge.health, allowance)
    for number in range(500):
        worker.receive(_report("stolen", number))
    worker.receive(_report("honest", 0))
    worker.step()
    stored = _reports(kedge, "stolen")
    assert 50 < stored < 200
    assert _reports(kedge, "honest") == 1
    assert kedge.health.counts()["messages_over_allowance"] == 500 - stored
    now[0] += 60.0
    worker.receive(_report("stolen", 499))
    worker.step()
    assert _reports(kedge, "stolen") == stored + 1


def test_the_oldest_of_who_has_told_the_most_is_forgotten(kedge: Parts) -> None:
    """It stays within its allowance for years: of each device the newest rows are kept, and no others."""
    for number in range(30):
        kedge.clock.seconds += 60.0
        refusal = RefusalEvent(
            id=f"x{number}",
            what="chunk",
            reason="bad_digest",
            detail="",
            time=0.0,
            boot_id="b",
            monotonic=0.0,
        )
        body = codec.encode(refusal)
        kedge.ingest.handle([_report("stolen", number), Incoming(f"{topics.DEVICE}/stolen/event", body)])
    kedge.ingest.handle([_report("honest", 0)])
    tidying = Tidying(kedge.database, {Report: 20, Refusal: 10})
    assert tidying.tidy() == 10 + 20
    assert (_reports(kedge, "stolen"), _reports(kedge, "honest")) == (20, 1)
    with kedge.database.read() as session:
        kept = {row.id for row in session.exec(select(Refusal)).all()}
    assert kept == {f"x{number}" for number in range(20, 30)}
    assert tidying.tidy() == 0


def test_a_device_has_no_more_models_than_a_device_may_have(kedge: Parts) -> None:
    """Each time that it introduces itself it names other models: of them, the last are kept."""
    for number in range(3):
        kedge.clock.seconds += 60.0
        slots = tuple(ModelSlot(model=f"m{number}-{i}", active="") for i in range(MOST_SLOTS))
        hello = Hello(boot_id="b", agent_version="1", target=TARGET, time=1.0, monotonic=1.0, slots=slots)
        kedge.ingest.handle([Incoming(f"{topics.DEVICE}/stolen/hello", codec.encode(hello))])
    with kedge.database.read() as session:
        kept = {row.model for row in session.exec(select(DeviceModel)).all()}
    assert kept == {f"m2-{i}" for i in range(MOST_SLOTS)}


def test_a_request_that_waits_is_not_forgotten(kedge: Parts) -> None:
    """A device has asked more than is kept, and the oldest question is still being worked on."""
    with kedge.database.write() as session:
        for number in range(5):
            session.add(_waiting("honest", number, finished=None if number == 0 else float(number)))
    assert Tidying(kedge.database, {OffloadRow: 2}).tidy() == 2
    with kedge.database.read() as session:
        assert {row.id for row in session.exec(select(OffloadRow)).all()} == {"q0", "q3", "q4"}


def _waiting(device: str, number: int, *, finished: float | None) -> OffloadRow:
    state = OffloadState.QUEUED if finished is None else OffloadState.ANSWERED
    return OffloadRow(
        device_id=device, id=f"q{number}", model="m", bundle="sha256:" + "0" * 64, score=0.1, provisional=0,
        data_class="crop", received_at=float(number), deadline=0.0, state=state.value, next_at=0.0, body=b"",
        finished_at=finished,
    )  # fmt: skip
