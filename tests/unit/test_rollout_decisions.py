"""The rules of rollouts: the plan, the transition table, and what a group's evidence leads to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.rollout.decision import Counts, Progress, Verdict, count, decide, expired, late
from fleet.rollout.plan import GroupSpec, OnFailure, PlanError, Policy, assign, order, parse_groups
from fleet.rollout.progress import after_hello, after_step
from fleet.rollout.states import (
    ACTIVE,
    TRANSITIONS,
    ActionStatus,
    Move,
    RolloutState,
    TransitionError,
    after,
    moves,
)
from fleet.wire.messages import UpdateState

S = ActionStatus
specs = st.one_of(
    st.builds(GroupSpec, percent=st.floats(0.1, 100)), st.builds(GroupSpec, count=st.integers(1, 50))
)
statuses = st.sampled_from(list(ActionStatus))


@given(
    st.sets(st.text("abc123", min_size=1, max_size=5), max_size=40), st.lists(specs, min_size=1, max_size=6)
)
def test_every_device_is_in_exactly_one_group(devices: set[str], groups: list[GroupSpec]) -> None:
    cut = assign(order(devices, "7"), groups)
    assert len(cut) == len(groups)
    assert sorted(d for group in cut for d in group) == sorted(devices)


def test_percentages_are_of_the_whole_and_counts_are_counts() -> None:
    devices = [f"d{n:03}" for n in range(100)]
    assert [len(g) for g in assign(devices, parse_groups("1, 10%, 50%, 100%"))] == [1, 9, 40, 50]
    assert [len(g) for g in assign(devices[:3], parse_groups("10%,100%"))] == [1, 2]
    assert [len(g) for g in assign(devices[:1], parse_groups("5,100%"))] == [1, 0]


def test_the_order_is_fixed_for_a_rollout_and_differs_between_rollouts() -> None:
    devices = [f"d{n}" for n in range(50)]
    assert order(devices, "1") == order(reversed(devices), "1")
    assert order(devices, "1")[:5] != order(devices, "2")[:5]


@pytest.mark.parametrize("text", ["", "0", "-1", "0%", "101%", "ten", "10%,,5", "nan%"])
def test_a_group_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="group: expected"):
        parse_groups(text)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(groups=()),
        Policy(success=0.0),
        Policy(success=1.1),
        Policy(failure=1.0),
        Policy(failure=float("nan")),
        Policy(min_executed=0),
        Policy(start_seconds=0.0),
        Policy(dwell_seconds=-1.0),
        Policy(groups=(GroupSpec(),)),
        Policy(groups=(GroupSpec(count=1, percent=1.0),)),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: Policy) -> None:
    with pytest.raises(PlanError, match="expected"):
        policy.check()


# --- the table ---------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(list(Move)), max_size=12))
def test_whatever_is_asked_a_rollout_is_in_a_state_of_the_table(asked: list[Move]) -> None:
    state = RolloutState.WAITING_FOR_APPROVAL
    for move in asked:
        if move in moves(state):
            state = after(state, move)
        else:
            with pytest.raises(TransitionError, match="possible"):
                after(state, move)
    assert state in RolloutState


def test_every_state_can_be_reached_and_every_active_one_left() -> None:
    reached, edge = {RolloutState.WAITING_FOR_APPROVAL}, [RolloutState.WAITING_FOR_APPROVAL]
    while edge:
        state = edge.pop()
        new = {after(state, move) for move in moves(state)} - reached
        reached |= new
        edge += new
    assert reached == set(RolloutState)
    assert all(moves(state) for state in ACTIVE)


def test_nothing_leads_out_of_being_rolled_back_and_nothing_back_to_approval() -> None:
    assert not moves(RolloutState.ROLLED_BACK)
    assert RolloutState.WAITING_FOR_APPROVAL not in TRANSITIONS.values()


# --- decisions ---------------------------------------------------------------------------------------


def _judge(
    policy: Policy, *found: tuple[ActionStatus, int], now: float = 100.0, last: bool = False
) -> Verdict:
    group = [
        Progress(status=status, assigned_at=0.0, started_at=1.0, finished_at=50.0)
        for status, number in found
        for _ in range(number)
    ]
    return decide(count(group, policy, now), policy, now, last=last).verdict


def test_an_empty_group_counts_as_success() -> None:
    assert _judge(Policy()) is Verdict.ADVANCE
    assert _judge(Policy(), last=True) is Verdict.FINISH
    assert _judge(Policy(), (S.CANCELED, 3)) is Verdict.ADVANCE


def test_a_group_waits_for_its_devices_and_then_goes_on() -> None:
    assert _judge(Policy(), (S.ASSIGNED, 1), (S.SUCCEEDED, 1)) is Verdict.WAIT
    assert _judge(Policy(), (S.SUCCEEDED, 2)) is Verdict.ADVANCE
    assert _judge(Policy(), (S.SUCCEEDED, 2), last=True) is Verdict.FINISH
    assert _judge(Policy(success=0.5), (S.IN_PROGRESS, 1), (S.SUCCEEDED, 1)) is Verdict.ADVANCE
    assert _judge(Policy(success=0.5), (S.IN_PROGRESS, 1), (S.SUCCEEDED, 1), last=True) is Verdict.WAIT


def test_failures_are_measured_against_executed_devices_not_against_the_whole_group() -> None:
    """Ninety devices that are switched off must not hide that both which tried have failed."""
    policy = Policy(failure=0.2)
    assert _judge(policy, (S.FAILED, 2), (S.ASSIGNED, 90)) is Verdict.HALT
    assert _judge(policy, (S.FAILED, 1), (S.SUCCEEDED, 9), (S.ASSIGNED, 90)) is Verdict.WAIT
    assert _judge(Policy(failure=0.2, on_failure=OnFailure.ROLL_BACK), (S.FAILED, 1)) is Verdict.ROLL_BACK


def test_a_minimum_of_executed_devices_is_waited_for_but_never_more_than_there_are() -> None:
    policy = Policy(failure=0.2, min_executed=5)
    assert _judge(policy, (S.FAILED, 4), (S.ASSIGNED, 6)) is Verdict.WAIT
    assert _judge(policy, (S.FAILED, 5), (S.ASSIGNED, 5)) is Verdict.HALT
    assert _judge(policy, (S.FAILED, 1)) is Verdict.HALT


def test_offline_devices_do_not_hold_a_group_up_for_ever() -> None:
    policy = Policy(start_seconds=50.0)
    assert _judge(policy, (S.ASSIGNED, 3), (S.SUCCEEDED, 1), now=40.0) is Verdict.WAIT
    assert _judge(policy, (S.ASSIGNED, 3), (S.SUCCEEDED, 1), now=60.0) is Verdict.ADVANCE


def test_a_group_of_which_nobody_began_waits_for_a_person() -> None:
    """Otherwise a release that no canary has tried would go to the whole fleet."""
    assert _judge(Policy(start_seconds=50.0), (S.ASSIGNED, 3)) is Verdict.PAUSE


def test_too_few_successes_without_too_many_failures_pause() -> None:
    policy = Policy(success=1.0, failure=0.5)
    assert _judge(policy, (S.SUCCEEDED, 3), (S.FAILED, 1)) is Verdict.PAUSE


def test_a_group_is_observed_for_a_while() -> None:
    policy = Policy(dwell_seconds=60.0)
    assert _judge(policy, (S.SUCCEEDED, 2), now=100.0) is Verdict.WAIT
    assert _judge(policy, (S.SUCCEEDED, 2), now=111.0) is Verdict.ADVANCE


def test_only_who_began_can_take_too_long_and_only_who_did_not_can_be_late() -> None:
    policy = Policy(start_seconds=10.0, finish_seconds=10.0)
    began = Progress(status=S.IN_PROGRESS, assigned_at=0.0, started_at=5.0)
    waits = Progress(status=S.ASSIGNED, assigned_at=0.0)
    assert [expired(began, policy, 15.0), expired(began, policy, 16.0), expired(waits, policy, 99.0)] == [
        False,
        True,
        False,
    ]
    assert [late(waits, policy, 10.0), late(waits, policy, 11.0), late(began, policy, 99.0)] == [
        False,
        True,
        False,
    ]


@given(st.lists(statuses, max_size=20), st.floats(0.1, 1), st.floats(0, 0.9), st.integers(1, 5))
def test_more_failures_never_turn_a_halt_into_an_advance(
    found: list[ActionStatus], success: float, failure: float, least: int
) -> None:
    policy = Policy(success=success, failure=failure, min_executed=least)
    counts = count([Progress(status=s) for s in found], policy, 0.0)
    worse = count([Progress(status=s) for s in [*found, S.FAILED]], policy, 0.0)
    if counts.executed >= least and decide(counts, policy, 0.0, last=False).verdict is Verdict.HALT:
        assert decide(worse, policy, 0.0, last=False).verdict is Verdict.HALT


@given(st.lists(st.sampled_from([S.SUCCEEDED, S.FAILED, S.TIMED_OUT, S.REJECTED]), min_size=1, max_size=20))
def test_once_all_have_ended_there_is_always_something_to_do(found: list[ActionStatus]) -> None:
    """A rollout with nothing left to wait for must not hang."""
    policy = Policy(failure=0.3)
    counts = count([Progress(status=s, finished_at=0.0) for s in found], policy, 1.0)
    assert decide(counts, policy, 1.0, last=True).verdict is not Verdict.WAIT


def test_counts_leave_the_canceled_out() -> None:
    counts = count([Progress(status=S.CANCELED), Progress(status=S.FAILED)], Policy(), 0.0)
    assert counts == Counts(total=1, executed=1, failed=1)


# --- following devices -------------------------------------------------------------------------------


@given(statuses, st.sampled_from(list(UpdateState)), st.sampled_from(["", "golden_mismatch", "superseded"]))
def test_a_decided_action_is_not_changed_by_stragglers(
    status: ActionStatus, step: UpdateState, reason: str
) -> None:
    new = after_step(status, step, reason)
    if status in {S.SUCCEEDED, S.FAILED, S.REJECTED, S.CANCELED, S.REVERTED, S.QUEUED}:
        assert new is status
    assert after_step(new, step, reason) is new  # a repeat changes nothing


def test_a_superseded_update_is_no_failure() -> None:
    assert after_step(S.IN_PROGRESS, UpdateState.ROLLED_BACK, "superseded") is S.CANCELED
    assert after_step(S.IN_PROGRESS, UpdateState.ROLLED_BACK, "golden_mismatch") is S.FAILED


def test_a_device_that_timed_out_and_then_committed_has_succeeded() -> None:
    assert after_step(S.TIMED_OUT, UpdateState.DOWNLOADING, "") is S.TIMED_OUT
    assert after_step(S.TIMED_OUT, UpdateState.COMMITTED, "") is S.SUCCEEDED


def test_a_hello_makes_up_for_lost_events() -> None:
    assert after_hello(S.IN_PROGRESS, "new", "new", "old") is S.SUCCEEDED
    assert after_hello(S.IN_PROGRESS, "old", "new", "old") is S.IN_PROGRESS
    assert after_hello(S.REVERTING, "old", "new", "old") is S.REVERTED
    assert after_hello(S.REVERTING, "new", "new", "old") is S.REVERTING
    assert after_hello(S.FAILED, "new", "new", "old") is S.FAILED
