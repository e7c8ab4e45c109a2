"""Where a hard request goes: filters first, then the price; and the breaker that leaves a pool alone."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet.offload import value
from fleet.offload.breaker import COOL_DOWN, FAILURES, LONGEST, Breaker, BreakerState, Outcome
from fleet.offload.routing import FILTERS, Ask, Choice, Load, Policy, Pool, PoolState, Refusal, route

POOL = Pool(
    name="frankfurt",
    region="eu",
    models={"digits": "digits-cloud:3"},
    price_per_hour=3.6,
    watts=360.0,
    capacity=4,
)
ASK = Ask(model="digits", data_class="crop", expires=100.0)
IDLE = Load(service_seconds=0.1)


def changed(**changes: object) -> Pool:
    return msgspec.structs.replace(POOL, **changes)


def refusal(pool: Pool, load: Load = IDLE, policy: Policy | None = None, now: float = 0.0) -> Refusal:
    found = route(ASK, [pool], {pool.name: load}, policy or Policy(), now)
    assert isinstance(found, Refusal)
    return found


def test_a_fitting_pool_is_chosen_with_its_expected_cost() -> None:
    choice = route(ASK, [POOL], {"frankfurt": IDLE}, Policy(), 0.0)
    assert isinstance(choice, Choice)
    assert (choice.pool, choice.cloud_model, choice.wait) == ("frankfurt", "digits-cloud:3", 0.1)
    assert choice.cost == pytest.approx(3.6 / 3600 * 0.1 / 4)
    assert choice.joules == pytest.approx(360 * 0.1 / 4)


OPEN = Load(breaker=Breaker(state=BreakerState.OPEN, until=50.0))
BUSY = Load(in_flight=5000, service_seconds=1.0)
REFUSED = [
    (changed(models={"faces": "faces"}), IDLE, Policy(), "does not serve the model"),
    (POOL, IDLE, Policy(regions=("us",)), "outside the allowed regions"),
    (changed(data_classes=("features",)), IDLE, Policy(), "may not be sent this data class"),
    (changed(state=PoolState.DRAINING), IDLE, Policy(), "draining"),
    (POOL, OPEN, Policy(), "cooling down after failures"),
    (POOL, BUSY, Policy(), "cannot answer before the deadline"),
    (POOL, IDLE, Policy(budget=0.0), "over budget"),
]


@pytest.mark.parametrize(("pool", "load", "policy", "reason"), REFUSED)
def test_each_filter_refuses_for_its_own_reason(pool: Pool, load: Load, policy: Policy, reason: str) -> None:
    assert refusal(pool, load, policy).reasons == {"frankfurt": reason}


def test_every_filter_is_tested() -> None:
    assert [reason for *_, reason in REFUSED] == [reason for reason, _, _ in FILTERS]


def test_residency_is_final_and_a_full_pool_is_not() -> None:
    """Waiting does not move a data centre; a busy one may be free before the request expires."""
    assert not refusal(POOL, policy=Policy(regions=("us",))).passing
    assert refusal(POOL, BUSY).passing
    assert not refusal(POOL, BUSY, now=200.0).passing
    assert route(ASK, [], {}, Policy(), 0.0) == Refusal(reasons={}, passing=True)


def test_data_that_may_not_leave_its_region_goes_to_the_dearer_pool_there() -> None:
    cheap = changed(name="ohio", region="us", price_per_hour=0.1)
    choice = route(ASK, [cheap, POOL], {}, Policy(regions=("eu",)), 0.0)
    assert isinstance(choice, Choice)
    assert choice.pool == "frankfurt"


def test_carbon_can_outweigh_money() -> None:
    cheap_and_dirty = changed(name="coal", price_per_hour=3.0, carbon=800.0)
    dear_and_clean = changed(name="hydro", price_per_hour=4.0, carbon=20.0)
    pools = [cheap_and_dirty, dear_and_clean]
    for price, expected in ((0.0, "coal"), (10.0, "hydro")):
        choice = route(ASK, pools, {}, Policy(carbon_price=price), 0.0)
        assert isinstance(choice, Choice)
        assert choice.pool == expected


def test_waiting_can_outweigh_money() -> None:
    cheap, dear = changed(name="cheap", price_per_hour=1.0), changed(name="dear", price_per_hour=5.0)
    loads = {"cheap": Load(in_flight=40, service_seconds=0.1), "dear": IDLE}
    for price, expected in ((0.0, "cheap"), (0.01, "dear")):
        choice = route(ASK, [cheap, dear], loads, Policy(wait_price=price), 0.0)
        assert isinstance(choice, Choice)
        assert choice.pool == expected


POOLS = st.builds(
    Pool,
    name=st.sampled_from(["a", "b", "c", "d"]),
    region=st.sampled_from(["eu", "us"]),
    models=st.sampled_from([{"digits": "x"}, {"faces": "y"}]),
    data_classes=st.sampled_from([("crop",), ("features", "crop"), ("raw",)]),
    price_per_hour=st.floats(0, 10),
    watts=st.floats(0, 1000),
    capacity=st.integers(1, 8),
    carbon=st.floats(0, 900),
    state=st.sampled_from(PoolState),
)
LOADS = st.builds(Load, in_flight=st.integers(0, 50), service_seconds=st.floats(0.001, 5.0))


@settings(max_examples=150)
@given(
    st.lists(POOLS, max_size=4, unique_by=lambda x: x.name),
    st.dictionaries(st.sampled_from("abcd"), LOADS),
    st.builds(
        Policy,
        regions=st.sampled_from([(), ("eu",)]),
        budget=st.floats(0, 0.01) | st.just(math.inf),
        carbon_price=st.floats(0, 10),
        wait_price=st.floats(0, 1),
    ),
    st.floats(0, 120),
)
def test_no_choice_breaks_a_rule_and_no_order_matters(
    pools: list[Pool], loads: dict[str, Load], policy: Policy, now: float
) -> None:
    found = route(ASK, pools, loads, policy, now)
    assert found == route(ASK, pools[::-1], loads, policy, now)
    if isinstance(found, Refusal):
        assert set(found.reasons) == {x.name for x in pools}
        return
    pool = next(x for x in pools if x.name == found.pool)
    assert pool.region in (policy.regions or ("eu", "us"))
    assert "crop" in pool.data_classes
    assert pool.state is PoolState.ACTIVE
    assert now + found.wait <= ASK.expires
    assert found.cost <= policy.budget


# --- the breaker -------------------------------------------------------------------------------------------


def test_failures_in_a_row_open_it_and_a_good_probe_closes_it() -> None:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.allows(10.0)
        breaker = breaker.after(Outcome.FAILED, 10.0)
    assert not breaker.allows(10.0 + COOL_DOWN - 0.1)
    assert breaker.allows(10.0 + COOL_DOWN)
    probing = breaker.after(Outcome.STARTED, 10.0 + COOL_DOWN)
    assert not probing.allows(1e9), "one probe at a time"
    assert probing.after(Outcome.SUCCEEDED, 16.0) == Breaker()


def test_each_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now = Breaker(state=BreakerState.OPEN, until=0.0), 0.0
    pauses = []
    for _ in range(10):
        breaker = breaker.after(Outcome.STARTED, now).after(Outcome.FAILED, now)
        pauses.append(breaker.until - now)
        now = breaker.until
    assert pauses[:3] == pytest.approx([10.0, 20.0, 40.0])
    assert pauses[-1] == pytest.approx(LONGEST)


class BreakerMachine(RuleBasedStateMachine):
    """Requests and their ends in any order: the pool is always let alone, and always gets another chance."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule(outcome=st.sampled_from([Outcome.SUCCEEDED, Outcome.FAILED]))
    def call(self, outcome: Outcome) -> None:
        self.breaker = self.breaker.after(Outcome.STARTED, self.now).after(outcome, self.now)

    @rule(outcome=st.sampled_from([Outcome.SUCCEEDED, Outcome.FAILED]))
    def late_end_of_an_older_call(self, outcome: Outcome) -> None:
        self.breaker = self.breaker.after(outcome, self.now)

    @invariant()
    def another_chance_comes(self) -> None:
        assert self.breaker.state is not BreakerState.PROBING
        assert self.breaker.allows(self.now + LONGEST)

    @invariant()
    def closed_means_few_failures(self) -> None:
        assert (self.breaker.state is BreakerState.CLOSED) == (self.breaker.failures < FAILURES)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=40, deadline=None)


# --- the value of asking -----------------------------------------------------------------------------------


def test_the_least_valuable_is_not_the_oldest() -> None:
    """The outbox is full: an old request of an unsure device outlives a fresh one that is almost certain."""
    old_and_unsure = value.priority(score=0.3, created=0.0, size=1000)
    fresh_and_sure = value.priority(score=0.97, created=1800.0, size=1000)
    assert old_and_unsure > fresh_and_sure


@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1e9), st.integers(1, 10**7)),
    st.tuples(st.floats(0, 1), st.floats(0, 1e9), st.integers(1, 10**7)),
    st.floats(0, 1e6),
)
def test_time_never_changes_the_order_of_two(
    a: tuple[float, float, int], b: tuple[float, float, int], later: float
) -> None:
    def gap(shift: float) -> float:
        ranks = [value.priority(score=s, created=t + shift, size=n) for s, t, n in (a, b)]
        return ranks[0] - ranks[1]

    assert gap(0.0) == pytest.approx(gap(later), abs=1e-3)


def test_bytes_count_against_a_request() -> None:
    small = value.priority(score=0.5, created=0.0, size=100)
    large = value.priority(score=0.5, created=0.0, size=200)
    assert small - large == pytest.approx(1.0)
