"""Hard requests on the server: stored, routed, answered once, and never lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlmodel import select

from fleet.ids import DeviceId, Digest
from fleet.offload.breaker import FAILURES, BreakerState
from fleet.offload.routing import Pool, PoolState
from fleet.wire.messages import Answer
from offload_parts import BUNDLE, DEVICE, Parts, add_pool, hard, wired
from processes import wait_until
from server.db.migrate import differences
from server.db.offload_tables import OffloadRow
from server.db.tables import BundleRow, Report
from server.errors import ConflictError, InvalidError, NotFoundError
from server.ports.accelerators import AcceleratorError
from server.services.offload.offload_queue import MOST_BYTES, MOST_WAITING, OffloadState
from server.services.offload.pools import OffloadPolicy, PoolSpec
from server.services.people.roles import SYSTEM


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = wired(tmp_path)
    yield made
    made.database.close()


@contextmanager
def working(parts: Parts) -> Iterator[None]:
    worker = parts.worker()
    worker.start()
    try:
        yield
        assert worker.health() == ""
    finally:
        worker.stop()


def answers(parts: Parts, number: int) -> list[Answer]:
    wait_until(lambda: len(parts.replies.to(DEVICE)) >= number, f"{number} answers")
    return parts.replies.to(DEVICE)


def row(parts: Parts, request_id: str) -> OffloadRow:
    with parts.database.read() as session:
        found = session.get(OffloadRow, (DEVICE, request_id))
    assert found is not None
    return found


def test_the_tables_are_those_of_the_migrations(parts: Parts) -> None:
    assert differences(parts.database) == []


def test_a_hard_request_is_answered_with_pool_region_cost_and_joules(parts: Parts) -> None:
    add_pool(parts, "frankfurt", price_per_hour=3600.0, watts=50.0)
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    with working(parts):
        (answer,) = answers(parts, 1)
    assert (answer.id, answer.label, answer.error) == ("r1", 2, "")
    assert (answer.pool, answer.region, answer.cloud_model) == ("frankfurt", "eu", "double")
    assert answer.cost > 0
    assert answer.joules == pytest.approx(50.0 * answer.cost)
    assert answer.outputs[0].name == "y"


def test_the_inputs_are_forgotten_once_they_are_answered(parts: Parts) -> None:
    """What left the device by its owner's leave is kept no longer than it takes to answer."""
    add_pool(parts, "frankfurt")
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    assert row(parts, "r1").body
    with working(parts):
        answers(parts, 1)
    assert row(parts, "r1").body == b""


def test_the_same_request_twice_is_worked_on_once_and_answered_twice(parts: Parts) -> None:
    """The broker is killed before the answer arrives; the device asks again, and gets what is known."""
    accelerator = add_pool(parts, "frankfurt")
    with working(parts):
        parts.queue.submit(DEVICE, hard(parts, "r1"))
        first = answers(parts, 1)[0]
        parts.queue.submit(DEVICE, hard(parts, "r1"))
        assert answers(parts, 2) == [first, first]
    assert accelerator.calls == ["r1"]


def test_an_ask_that_crosses_the_answer_is_answered_again(parts: Parts) -> None:
    """The broker dies just after it took the answer; the device asks again before the server has noted it."""
    job_request = hard(parts, "r1")
    parts.queue.submit(DEVICE, job_request)
    (job,) = parts.queue.take(1)
    parts.queue.finish(job, Answer(id="r1", model="doubler", label=2))
    (first,) = parts.queue.undelivered()
    parts.queue.submit(DEVICE, job_request)
    parts.queue.delivered([first])
    (second,) = parts.queue.undelivered()
    parts.queue.delivered([second])
    assert parts.queue.undelivered() == []


def test_a_stranger_cannot_fill_the_queue(parts: Parts) -> None:
    parts.queue.submit(DeviceId("nobody"), hard(parts, "r1"))
    assert parts.health.counts() == {"offload_turned_away": 1}


def test_one_device_cannot_fill_the_queue_for_all(parts: Parts) -> None:
    with parts.database.write() as session:
        for number in range(MOST_WAITING):
            session.add(
                OffloadRow(
                    device_id=DEVICE, id=f"r{number}", model="m", bundle=BUNDLE, score=0.1, provisional=0,
                    data_class="crop", received_at=0, deadline=0, state="queued", next_at=0, body=b"",
                )
            )  # fmt: skip
    parts.queue.submit(DEVICE, hard(parts, "one-more"))
    assert parts.health.counts() == {"offload_turned_away": 1}


def test_a_few_huge_requests_cannot_fill_the_disk(parts: Parts) -> None:
    """A stolen device asks a thousand times with four megabytes each: what it has waiting has a size, too."""
    with parts.database.write() as session:
        session.add(
            OffloadRow(
                device_id=DEVICE, id="large", model="m", bundle=BUNDLE, score=0.1, provisional=0,
                data_class="crop", received_at=0, deadline=0, state="queued", next_at=0,
                body=bytes(MOST_BYTES),
            )
        )  # fmt: skip
    parts.queue.submit(DEVICE, hard(parts, "one-more"))
    assert parts.health.counts() == {"offload_turned_away": 1}


def test_a_pool_that_fails_is_followed_by_the_next(parts: Parts) -> None:
    broken = add_pool(parts, "cheap", price_per_hour=0.1)
    broken.error = AcceleratorError("UNAVAILABLE", passing=True)
    add_pool(parts, "dear", price_per_hour=10.0)
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    with working(parts):
        assert answers(parts, 1)[0].pool == "dear"
    assert broken.calls == ["r1"]


def test_a_pool_that_keeps_failing_is_left_alone(parts: Parts) -> None:
    broken = add_pool(parts, "cheap", price_per_hour=0.1)
    broken.error = AcceleratorError("UNAVAILABLE", passing=True)
    add_pool(parts, "dear", price_per_hour=10.0)
    with working(parts):
        for number in range(FAILURES + 4):
            parts.queue.submit(DEVICE, hard(parts, f"r{number}"))
            answers(parts, number + 1)
    assert len(broken.calls) == FAILURES
    views = {x.pool.name: x for x in parts.views.overview().pools}
    assert views["cheap"].breaker is BreakerState.OPEN
    assert views["dear"].breaker is BreakerState.CLOSED


def test_a_request_at_fault_is_refused_for_good_and_not_held_against_the_pool(parts: Parts) -> None:
    accelerator = add_pool(parts, "frankfurt")
    accelerator.error = AcceleratorError("INVALID_ARGUMENT: expected 4 columns", passing=False)
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    with working(parts):
        (answer,) = answers(parts, 1)
    assert answer.error == "frankfurt: INVALID_ARGUMENT: expected 4 columns"
    assert parts.views.overview().pools[0].breaker is BreakerState.CLOSED
    assert row(parts, "r1").state == OffloadState.REFUSED.value


def test_without_a_pool_it_waits_and_is_answered_when_one_comes(parts: Parts) -> None:
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    with working(parts):
        wait_until(lambda: row(parts, "r1").reason == "there is no pool", "it waits")
        add_pool(parts, "frankfurt")
        parts.clock.time += 5
        assert answers(parts, 1)[0].label == 2


def test_what_nobody_answers_in_time_expires(parts: Parts) -> None:
    parts.queue.submit(DEVICE, hard(parts, "r1", ttl=30))
    with working(parts):
        wait_until(lambda: row(parts, "r1").attempts > 0, "a first try")
        parts.clock.time += 31
        assert answers(parts, 1)[0].error == "expired"


def test_a_device_with_a_wrong_clock_still_gets_its_time_to_live(parts: Parts) -> None:
    """Its clock runs a year ahead: the expiry it names is worth only its length."""
    request = hard(parts, "r1", ttl=30)
    parts.clock.time -= 365 * 86400
    parts.queue.submit(DEVICE, request)
    assert row(parts, "r1").deadline == parts.clock.now() + 30


def test_data_that_may_go_nowhere_is_refused_at_once(parts: Parts) -> None:
    add_pool(parts, "ohio", region="us")
    parts.pools.set_policy(SYSTEM, OffloadPolicy(regions=("eu",)))
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    with working(parts):
        assert answers(parts, 1)[0].error == "ohio: outside the allowed regions"
    assert parts.accelerators["grpc://ohio:1"].calls == []


def test_the_budget_of_a_day_is_kept_and_comes_back_at_midnight(parts: Parts) -> None:
    add_pool(parts, "frankfurt", price_per_hour=3600.0)
    with working(parts):
        parts.queue.submit(DEVICE, hard(parts, "r1", ttl=5 * 86400))
        answers(parts, 1)
        spent = parts.offload.spent_today()
        assert spent > 0
        parts.pools.set_policy(SYSTEM, OffloadPolicy(daily_budget=spent))
        parts.queue.submit(DEVICE, hard(parts, "r2", ttl=5 * 86400))
        wait_until(lambda: row(parts, "r2").reason == "frankfurt: over budget", "it waits for the budget")
        parts.pools.set_policy(SYSTEM, OffloadPolicy(daily_budget=1.0))
        parts.clock.time += 86400
        answers(parts, 2)


def test_a_draining_pool_finishes_and_takes_nothing_new(parts: Parts) -> None:
    accelerator = add_pool(parts, "spot")
    entered, leave = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert leave.wait(20)

    accelerator.before = block
    with working(parts):
        parts.queue.submit(DEVICE, hard(parts, "r1"))
        assert entered.wait(20)
        spec = parts.pools.get("spot")
        parts.pools.change(SYSTEM, "spot", PoolSpec(url=spec.url, pool=_drained(spec.pool)))
        parts.queue.submit(DEVICE, hard(parts, "r2"))
        wait_until(lambda: row(parts, "r2").reason == "spot: draining", "the second waits")
        leave.set()
        assert answers(parts, 1)[0].id == "r1"
    assert accelerator.calls == ["r1"]


def _drained(pool: Pool) -> Pool:
    return Pool(name=pool.name, region=pool.region, models=pool.models, state=PoolState.DRAINING)


def test_answers_wait_for_the_broker(parts: Parts) -> None:
    add_pool(parts, "frankfurt")
    parts.replies.broken = True
    worker = parts.worker()
    worker.start()
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    wait_until(lambda: parts.views.overview().undelivered == 1, "an answer waits")
    wait_until(lambda: "not connected" in worker.health(), "the worker says why")
    parts.replies.broken = False
    assert answers(parts, 1)[0].label == 2
    worker.stop()
    assert parts.views.overview().undelivered == 0


def test_a_killed_server_takes_up_what_it_was_working_on(tmp_path: Path) -> None:
    """The server dies with a request at the accelerator: the next start works on it again."""
    first = wired(tmp_path)
    first.queue.submit(DEVICE, hard(first, "r1"))
    assert len(first.queue.take(10)) == 1
    assert first.queue.take(10) == []
    first.database.close()
    second = wired(tmp_path)
    add_pool(second, "frankfurt")
    with working(second):
        assert answers(second, 1)[0].id == "r1"
    second.database.close()


def test_many_at_once_are_all_answered_exactly_once(parts: Parts) -> None:
    accelerator = add_pool(parts, "frankfurt", capacity=4)
    with working(parts):
        for number in range(60):
            parts.queue.submit(DEVICE, hard(parts, f"r{number}"))
        got = answers(parts, 60)
    assert sorted(x.id for x in got) == sorted(accelerator.calls) == sorted(f"r{n}" for n in range(60))


def test_the_class_is_read_from_the_output_that_the_bundle_names(parts: Parts) -> None:
    with parts.database.write() as session:
        session.add(
            BundleRow(
                digest=BUNDLE, model="doubler", target="laptop-x86", precision="int8", manifest_size=1,
                index_digest=Digest.of(b"i"), index_size=1, device_bytes=1,
                description={"offload": {"output": "y"}}, created_at=0,
            )
        )  # fmt: skip
    add_pool(parts, "frankfurt")
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    with working(parts):
        assert answers(parts, 1)[0].label == 2


def test_the_overview_says_how_much_goes_to_the_cloud_and_how_often_it_disagrees(parts: Parts) -> None:
    add_pool(parts, "frankfurt", price_per_hour=7.2)
    with parts.database.write() as session:
        session.add(
            Report(
                device_id=DEVICE, bundle=BUNDLE, boot_id="b", window_start=0, window_seconds=60,
                model="doubler", requests=20, body=b"", received_at=parts.clock.now(),
            )
        )  # fmt: skip
    with working(parts):
        for number in range(5):
            parts.queue.submit(DEVICE, hard(parts, f"r{number}"))
        answers(parts, 5)
        wait_until(lambda: parts.views.overview().undelivered == 0, "all are delivered")
    parts.queue.submit(DEVICE, hard(parts, "late"))
    parts.clock.time += 12
    view = parts.views.overview()
    (model,) = view.models
    assert (model.requests, model.received, model.answered, model.waiting) == (20, 6, 5, 1)
    assert (model.share, model.disagreed) == (0.3, 1.0)
    assert (view.waiting, view.oldest_waiting_seconds) == (1, 12.0)
    assert view.pools[0].answered == 5
    assert view.spent_today == pytest.approx(view.pools[0].cost) != 0


def test_old_rows_are_forgotten(parts: Parts) -> None:
    add_pool(parts, "frankfurt")
    parts.queue.submit(DEVICE, hard(parts, "r1"))
    with working(parts):
        answers(parts, 1)
    parts.clock.time += 31 * 86400
    parts.queue.purge()
    with parts.database.read() as session:
        assert session.exec(select(OffloadRow)).all() == []


# --- pools -------------------------------------------------------------------------------------------------


def test_a_pool_is_added_changed_and_removed_and_each_is_audited(parts: Parts) -> None:
    add_pool(parts, "frankfurt")
    with pytest.raises(ConflictError, match="already"):
        add_pool(parts, "frankfurt")
    spec = parts.pools.get("frankfurt")
    assert parts.pools.all() == [spec]
    parts.pools.change(SYSTEM, "frankfurt", PoolSpec(url="grpc://other:1", pool=spec.pool))
    assert parts.pools.get("frankfurt").url == "grpc://other:1"
    parts.pools.remove(SYSTEM, "frankfurt")
    for call in (parts.pools.get, lambda name: parts.pools.remove(SYSTEM, name)):
        with pytest.raises(NotFoundError):
            call("frankfurt")


@pytest.mark.parametrize(
    "changes",
    [
        {"models": {}},
        {"capacity": 0},
        {"price_per_hour": -1.0},
        {"data_classes": ("secrets",)},
        {"watts": 1e999},
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(parts: Parts, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        add_pool(parts, "frankfurt", **changes)
    assert parts.pools.all() == []


def test_a_policy_is_kept(parts: Parts) -> None:
    assert parts.pools.policy() == OffloadPolicy()
    policy = OffloadPolicy(regions=("eu",), daily_budget=5.0, carbon_price=0.1, wait_price=0.01)
    parts.pools.set_policy(SYSTEM, policy)
    assert parts.pools.policy() == policy
    with pytest.raises(InvalidError):
        parts.pools.set_policy(SYSTEM, OffloadPolicy(daily_budget=-1.0))
