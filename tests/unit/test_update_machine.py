"""The update machine: what is active was proven, and every road ends in committed or rolled back."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from device_agent.update import diagram
from device_agent.update.data import Offer, UpdateData
from device_agent.update.events import Action, ActiveBroken, Done, Event, Failed, Offered, Restarted
from device_agent.update.machine import MAX_CRASHES, Step, step
from device_agent.update.table import ACTIONS, BUSY, RESTING, ROWS, RUNNING, TABLE, Trigger
from fleet.wire.messages import UpdateState as S
from named_bundles import named_bundle

LATER = datetime(2100, 1, 1, tzinfo=timezone.utc)


def offer(number: int, rollout: str = "r1", *, counter: int = 1, back: bool = False) -> Offer:
    return Offer(
        bundle=named_bundle(str(number), "m", counter=counter),
        rollout=rollout,
        assignment_version=1,
        activate_before=LATER,
        allow_rollback=back,
    )


def run(data: UpdateData, *events: Event) -> UpdateData:
    for event in events:
        data = step(data, event).data
    return data


def committed(number: int = 1, rollout: str = "r1") -> UpdateData:
    return run(UpdateData(model="m"), Offered(offer(number, rollout)), *[Done()] * 7)


def at(state: S, number: int = 2, rollout: str = "r2") -> UpdateData:
    """Return a machine with bundle 1 active that has come to a state of installing another."""
    data = run(committed(), Offered(offer(number, rollout)))
    for _ in range(10):
        if data.state is state:
            return data
        data = run(data, Done())
    raise AssertionError(state)


def test_the_way_forward_visits_every_step_in_order() -> None:
    data, seen = UpdateData(model="m"), []
    data = run(data, Offered(offer(1)))
    while data.state not in RESTING:
        seen.append(data.state.value)
        data = run(data, Done())
    assert seen == ["downloading", "verifying", "staged", "loading", "golden_check", "shadow", "canary"]
    assert data.state is S.COMMITTED
    assert data.active == offer(1).bundle
    assert data.release_counter == 1


def test_the_bundle_before_is_kept_as_the_previous_one() -> None:
    data = run(committed(1), Offered(offer(2, "r2", counter=5)), *[Done()] * 7)
    assert data.active is not None
    assert data.previous is not None
    assert (data.active.version, data.previous.version, data.release_counter) == ("2", "1", 5)


@pytest.mark.parametrize("state", BUSY)
def test_any_fault_rolls_back_and_the_active_bundle_stays(state: S) -> None:
    data = run(at(state), Failed("broken", "why"))
    assert data.state is S.ROLLING_BACK
    data = run(data, Done())
    assert (data.state, data.reason, data.detail) == (S.ROLLED_BACK, "broken", "why")
    assert data.active == offer(1).bundle


@pytest.mark.parametrize("state", BUSY)
def test_the_retained_assignment_coming_again_changes_nothing(state: S) -> None:
    before = at(state)
    result = step(before, Offered(offer(2, "r2")))
    assert (result.data.state, result.action, result.entered) == (state, None, False)


def test_a_bundle_that_failed_is_not_tried_again_under_the_same_rollout() -> None:
    """The broker sends the retained assignment with every connect: a loop of failures must not follow."""
    data = run(at(S.GOLDEN_CHECK), Failed("golden_mismatch"), Done())
    assert run(data, Offered(offer(2, "r2"))) == data
    assert run(data, Offered(offer(2, "r3"))).state is S.DOWNLOADING


@pytest.mark.parametrize("state", BUSY)
def test_an_aborted_rollout_gives_the_old_bundle_back(state: S) -> None:
    """The operator aborts in mid-update: the assignment names the bundle that is active."""
    result = step(at(state), Offered(offer(1, "abort")))
    assert (result.data.state, result.data.reason) == (S.ROLLING_BACK, "aborted")
    result = step(result.data, Done())
    assert result.action is Action.TAKE_PENDING
    assert result.data.pending == offer(1, "abort")
    data = run(result.data, Offered(offer(1, "abort")))
    assert (data.state, data.rollout, data.active) == (S.COMMITTED, "abort", offer(1).bundle)


@pytest.mark.parametrize("state", BUSY)
def test_a_newer_bundle_supersedes_the_one_being_installed(state: S) -> None:
    data = run(at(state), Offered(offer(3, "r3")))
    assert (data.state, data.reason) == (S.ROLLING_BACK, "superseded")
    data = run(data, Done(), Offered(offer(3, "r3")), *[Done()] * 7)
    assert data.active == offer(3).bundle
    assert data.previous == offer(1).bundle


def test_a_superseded_bundle_may_be_offered_again() -> None:
    data = run(at(S.CANARY), Offered(offer(3, "r3")), Done())
    assert run(data, Offered(offer(2, "r2"))).state is S.DOWNLOADING


def test_a_rollout_of_what_runs_already_is_committed_at_once() -> None:
    result = step(committed(), Offered(offer(1, "another")))
    assert (result.data.state, result.data.rollout, result.entered) == (S.COMMITTED, "another", True)


@pytest.mark.parametrize("state", RUNNING)
def test_crashes_with_the_candidate_in_use_roll_it_back(state: S) -> None:
    data = at(state)
    for _ in range(MAX_CRASHES - 1):
        data = run(data, Restarted(clean=False))
        assert data.state is S.LOADING
    data = run(data, Restarted(clean=False))
    assert (data.state, data.reason) == (S.ROLLING_BACK, "crash_loop")


@pytest.mark.parametrize("state", [s for s in S if s not in RUNNING])
def test_power_cycles_elsewhere_burn_no_attempts(state: S) -> None:
    """RAUC's old trap: quick power cycling burnt the boot attempts of a good slot."""
    if state is S.IDLE:
        data = UpdateData(model="m")
    elif state in (S.ROLLING_BACK, S.ROLLED_BACK):
        data = run(at(S.CANARY), Failed("x"), *([Done()] if state is S.ROLLED_BACK else []))
    else:
        data = at(state)
    again = run(data, *[Restarted(clean=False)] * 10)
    assert (again.state, again.crashes, again.active) == (data.state, data.crashes, data.active)


def test_a_clean_stop_is_no_crash() -> None:
    data = run(at(S.CANARY), *[Restarted(clean=True)] * 10)
    assert (data.state, data.crashes) == (S.LOADING, 0)


def test_a_damaged_active_bundle_gives_way_to_the_previous_one() -> None:
    data = run(committed(1), Offered(offer(2, "r2")), *[Done()] * 7)
    result = step(data, ActiveBroken("bit rot"))
    assert result.action is Action.ROLL_BACK
    assert result.data.active == offer(1).bundle
    assert run(result.data, Done()).state is S.ROLLED_BACK


def test_a_signed_rollback_lowers_the_release_counter_and_nothing_else_does() -> None:
    data = run(UpdateData(model="m"), Offered(offer(2, counter=7)), *[Done()] * 7)
    down = run(data, Offered(offer(1, "back", counter=3, back=True)), *[Done()] * 7)
    assert down.release_counter == 3
    kept = run(data, Offered(offer(1, "other", counter=3)), *[Done()] * 7)
    assert kept.release_counter == 7


def test_every_state_has_rows_and_every_busy_one_an_action() -> None:
    assert {source for source, _ in TABLE} == set(S)
    for state in (*BUSY, S.ROLLING_BACK):
        assert state in ACTIONS
        for trigger in (Trigger.NEW_OFFER, Trigger.RESTARTED, Trigger.DONE, Trigger.ACTIVE_BROKEN):
            assert (state, trigger) in TABLE
    assert len(TABLE) == sum(len(row.sources) for row in ROWS), "a pair stands twice in the table"


def test_the_diagram_shows_every_change_of_state() -> None:
    drawn = diagram.mermaid()
    for row in ROWS:
        for source in row.sources:
            if row.target not in (None, source):
                assert f"{source.value} --> {row.target.value}" in drawn if row.target else True
    assert len(diagram.rows().splitlines()) == len(ROWS) + 2


events = st.one_of(
    st.builds(
        Offered,
        st.builds(offer, st.integers(1, 3), st.sampled_from(["r1", "r2", "r3"]), counter=st.integers(1, 3)),
    ),
    st.just(Done()),
    st.just(Failed("fault")),
    st.builds(Restarted, st.booleans()),
    st.just(ActiveBroken("damage")),
)


@settings(max_examples=150)
@given(st.lists(events, max_size=25))
def test_the_journal_holds_the_whole_state(sequence: list[Event]) -> None:
    """After any history, what is read back from the journal goes on exactly as what was written."""
    data = run(UpdateData(model="m"), *sequence)
    read = msgspec.json.decode(msgspec.json.encode(data), type=UpdateData)
    assert read == data
    for event in (Done(), Failed("x"), Restarted(clean=False), Offered(offer(9, "r9"))):
        assert step(read, event) == step(data, event)


class Life(RuleBasedStateMachine):
    """Any history of offers, outcomes, crashes and damage."""

    def __init__(self) -> None:
        super().__init__()
        self.data = UpdateData(model="m")
        self.passed: set[S] = set()
        self.proven: set[str] = set()

    def take(self, event: Event) -> Step:
        before = self.data
        result = step(before, event)
        if isinstance(event, Done):
            self.passed.add(before.state)
        if result.data.state is S.DOWNLOADING and result.entered:
            self.passed.clear()
        if result.data.state is S.LOADING and result.entered:
            self.passed -= set(RUNNING)
        if result.data.active != before.active and result.data.state is S.COMMITTED:
            assert {S.VERIFYING, S.GOLDEN_CHECK, S.CANARY} <= self.passed, "committed without proof"
            assert result.data.active is not None
            self.proven.add(result.data.active.digest)
        self.data = result.data
        if result.action is Action.TAKE_PENDING and self.data.pending is not None:
            self.take(Offered(self.data.pending))
        return result

    @rule(number=st.integers(1, 4), rollout=st.sampled_from(["r1", "r2", "r3"]), back=st.booleans())
    def offered(self, number: int, rollout: str, back: bool) -> None:
        self.take(Offered(offer(number, rollout, counter=number, back=back)))

    @precondition(lambda self: self.data.installing)
    @rule()
    def done(self) -> None:
        self.take(Done())

    @precondition(lambda self: self.data.state in BUSY)
    @rule()
    def failed(self) -> None:
        self.take(Failed("fault"))

    @rule(clean=st.booleans())
    def restarted(self, clean: bool) -> None:
        self.take(Restarted(clean))

    @precondition(lambda self: self.data.active is not None)
    @rule()
    def damaged(self) -> None:
        self.take(ActiveBroken("damage"))

    @invariant()
    def what_is_active_or_previous_was_proven(self) -> None:
        for bundle in (self.data.active, self.data.previous):
            assert bundle is None or bundle.digest in self.proven

    @invariant()
    def a_crash_here_still_ends_well(self) -> None:
        """From this very point: power cut, restart, and whatever happens then, the update ends."""
        for outcome in (Done(), Failed("fault")):
            data = step(self.data, Restarted(clean=False)).data
            for _ in range(12):
                if not data.installing:
                    break
                data = step(data, outcome if data.state in BUSY else Done()).data
            assert data.state in RESTING
            assert data.active == self.data.active or isinstance(outcome, Done)
            assert self.data.active is None or data.active is not None

    @invariant()
    def endless_crashes_end_too(self) -> None:
        data = self.data
        for _ in range(MAX_CRASHES + 1):
            data = step(data, Restarted(clean=False)).data
        assert data.state not in RUNNING


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLife = Life.TestCase
