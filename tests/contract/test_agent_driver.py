"""The driver: the journal first, then the action; late results dropped; its own faults rolled back."""

from __future__ import annotations

import queue
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from device_agent.adapters.clock import SystemClock
from device_agent.adapters.journal import FileJournal
from device_agent.driver import Driver, Outcome, Ties
from device_agent.errors import StorageError
from device_agent.update.data import Offer, UpdateData
from device_agent.update.events import Action, ActiveBroken, Done, Failed, Offered
from fleet.trust.assignment import AssignedBundle
from fleet.wire.messages import UpdateEvent, UpdateState
from good_update import STEPS
from named_bundles import named_bundle

ENDS = ("committed", "rolled_back")
LATER = datetime(2100, 1, 1, tzinfo=timezone.utc)


def bundle(number: int) -> AssignedBundle:
    return named_bundle(str(number), "m", counter=number)


def offered(number: int, rollout: str) -> Offered:
    return Offered(Offer(bundle=bundle(number), rollout=rollout, assignment_version=1, activate_before=LATER))


class Script:
    """Performs nothing, and ends each action as the test says; implements `Performer`."""

    def __init__(self, journal: FileJournal) -> None:
        self.journal = journal
        self.outcomes: dict[Action, Callable[[Callable[[], bool]], Done | Failed | ActiveBroken]] = {}
        self.done: list[tuple[Action, UpdateState]] = []
        self.damaged: set[str] = set()
        self.answering = ""

    def start(self, active: AssignedBundle) -> None:
        """Load the active bundle, or fail."""
        self.answering = active.version
        if active.version in self.damaged:
            raise StorageError(f"{active.digest} is damaged")

    def perform(
        self, action: Action, data: UpdateData, cancelled: Callable[[], bool]
    ) -> Done | Failed | ActiveBroken:
        """End as told; note what the journal says by now."""
        assert data.model == "m"
        self.done.append((action, self.journal.load("m").data.state))
        outcome = self.outcomes.get(action)
        return outcome(cancelled) if outcome else Done()


class Bench:
    """A driver with everything around it."""

    def __init__(self, folder: Path) -> None:
        self.journal = FileJournal(folder)
        self.script = Script(self.journal)
        self.reported: list[UpdateEvent] = []
        self.full = False
        self.queue: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.driver = self.restarted()

    def report(self, event: UpdateEvent) -> None:
        """Take an event unless the disk is full."""
        if self.full:
            raise StorageError("outbox: database or disk is full")
        self.reported.append(event)

    def restarted(self) -> Driver:
        ties = Ties(
            journal=self.journal,
            clock=SystemClock(),
            boot_id="boot",
            report=self.report,
            post=self.queue.put,
        )
        self.driver = Driver("m", self.script, ties)
        return self.driver

    def run(self) -> UpdateState:
        """Feed outcomes until the update has ended."""
        while self.driver.data.installing:
            self.driver.take(self.queue.get(timeout=10))
        return self.driver.data.state


def test_the_journal_is_written_before_anything_is_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.driver.start(clean=False)
    bench.driver.feed(offered(1, "r1"))
    assert bench.run() is UpdateState.COMMITTED
    bench.driver.stop()
    assert [state.value for _, state in bench.script.done] == list(STEPS)
    assert [x.state for x in bench.reported][-1] is UpdateState.COMMITTED


def test_a_cut_between_journal_and_outbox_loses_no_event(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.driver.feed(offered(1, "r1"))
    bench.run()
    last = bench.reported[-1]
    bench.reported.clear()
    bench.restarted().start(clean=False)
    assert bench.reported == [last], "the same event with the same id: the server ignores a repeat"


def test_a_fault_of_our_own_rolls_back_too(tmp_path: Path) -> None:
    def bug(_cancelled: Callable[[], bool]) -> Done:
        raise KeyError("a bug")

    bench = Bench(tmp_path)
    bench.script.outcomes[Action.SHADOW] = bug
    bench.driver.feed(offered(1, "r1"))
    assert bench.run() is UpdateState.ROLLED_BACK
    assert (bench.driver.data.reason, bench.driver.data.detail) == ("internal_error", "KeyError: 'a bug'")


def test_a_newer_offer_cancels_what_is_under_way_and_its_result_is_dropped(tmp_path: Path) -> None:
    """The operator changes their mind while the canary runs for an hour."""

    def hour(cancelled: Callable[[], bool]) -> Done:
        while not cancelled():
            pass
        return Done({"late": 1.0})

    bench = Bench(tmp_path)
    bench.script.outcomes[Action.CANARY] = hour
    bench.driver.feed(offered(1, "r1"))
    while bench.driver.data.state is not UpdateState.CANARY:
        bench.driver.take(bench.queue.get(timeout=10))
    del bench.script.outcomes[Action.CANARY]
    bench.driver.feed(offered(2, "r2"))
    while bench.driver.data.rollout != "r2" or bench.driver.data.installing:
        bench.driver.take(bench.queue.get(timeout=10))
    ends = [(x.rollout, x.state.value, x.reason) for x in bench.reported if x.state.value in ENDS]
    assert ends == [("r1", "rolled_back", "superseded"), ("r2", "committed", "")]
    assert bench.driver.data.active == bundle(2)


def test_a_damaged_active_bundle_falls_back_at_the_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in (1, 2):
        bench.driver.feed(offered(number, f"r{number}"))
        bench.run()
    bench.script.damaged.add("2")
    bench.restarted().start(clean=True)
    assert bench.run() is UpdateState.ROLLED_BACK
    assert bench.driver.data.active == bundle(1)
    assert bench.driver.data.reason == "active_broken"


def test_a_damaged_active_bundle_gives_way_even_while_another_is_downloaded(tmp_path: Path) -> None:
    """The download may take days; until then the bundle before answers."""
    bench = Bench(tmp_path)
    for number in (1, 2):
        bench.driver.feed(offered(number, f"r{number}"))
        bench.run()
    bench.driver.feed(offered(3, "r3"))
    bench.driver.stop()
    bench.script.damaged.add("2")
    bench.restarted().start(clean=True)
    assert bench.script.answering == "1"
    assert bench.run() is UpdateState.COMMITTED
    assert (bench.driver.data.active, bench.driver.data.previous) == (bundle(3), bundle(1))


def test_a_full_disk_delays_the_report_and_not_the_update(tmp_path: Path) -> None:
    """The outbox takes nothing for a while: the action is done all the same, and told of later."""
    bench = Bench(tmp_path)
    bench.full = True
    bench.driver.feed(offered(1, "r1"))
    assert bench.run() is UpdateState.COMMITTED
    assert bench.reported == []
    bench.full = False
    bench.driver.tell()
    bench.driver.tell()
    assert [x.state for x in bench.reported] == [UpdateState.COMMITTED], "once"


def test_an_outcome_that_the_journal_did_not_take_may_come_again(tmp_path: Path) -> None:
    """The disk is full at the commit, and has room a second later."""
    bench = Bench(tmp_path)
    bench.driver.feed(offered(1, "r1"))
    outcome = bench.queue.get(timeout=10)
    (tmp_path / "m.json").rename(tmp_path / "kept")
    (tmp_path / "m.json").mkdir()  # nothing can be renamed over a folder
    before = bench.driver.data
    with pytest.raises(StorageError):
        bench.driver.take(outcome)
    assert bench.driver.data == before
    (tmp_path / "m.json").rmdir()
    (tmp_path / "kept").rename(tmp_path / "m.json")
    bench.driver.take(outcome)
    assert bench.run() is UpdateState.COMMITTED
