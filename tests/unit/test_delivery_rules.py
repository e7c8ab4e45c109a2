"""The rules of delivery: what is asked where, how fast, how soon, and what a broker keeps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from device_agent.update.sourcing import Price, Sourcing
from device_agent.update.token_bucket import TokenBucket, delay
from fleet.bundle import catalogue
from fleet.errors import UserError, WireError
from fleet.ids import Digest
from fleet.quantity import format_bytes, parse_bytes
from fleet.rollout.plan import GroupSpec, PlanError, parse_groups
from fleet.trust.delivery import Delivery
from server.services.releases.retention import fit

A, B = Digest.of(b"a"), Digest.of(b"b")


# --- which source --------------------------------------------------------------------------------------


def sourcing(**prices: Price) -> Sourcing:
    return Sourcing(prices, now=0.0)


def test_the_cheapest_source_is_asked() -> None:
    chosen = sourcing(http=Price(cost=1.0), mqtt=Price(cost=0.0))
    assert chosen.choose(A, 0.0) == "mqtt"


def test_what_the_broker_does_not_retain_is_asked_of_http_at_once() -> None:
    chosen = sourcing(mqtt=Price(cost=0.0, holds=False), http=Price(cost=1.0))
    assert chosen.choose(A, 0.0) == "http"


def test_a_catalogue_that_lies_costs_a_detour_and_no_more() -> None:
    """The broker does retain it, and HTTP has nothing: a source that denied comes last, not never."""
    chosen = sourcing(mqtt=Price(cost=0.0, holds=False), http=Price(cost=1.0))
    chosen.missing("http", A)
    assert chosen.choose(A, 0.0) == "mqtt"
    assert chosen.choose(B, 0.0) == "http"


def test_a_chunk_that_no_source_has_is_asked_for_again_from_the_cheapest() -> None:
    chosen = sourcing(mqtt=Price(cost=0.0), http=Price(cost=1.0))
    for name in ("mqtt", "http"):
        chosen.missing(name, A)
    assert chosen.choose(A, 0.0) == "mqtt"


def test_a_source_in_trouble_rests_longer_each_time_and_comes_back() -> None:
    chosen = sourcing(mqtt=Price(cost=0.0), http=Price(cost=1.0))
    chosen.troubled("mqtt", 0.0)
    assert chosen.choose(A, 1.0) == "http"
    assert chosen.choose(A, 5.0) == "mqtt"
    chosen.troubled("mqtt", 5.0)
    assert chosen.choose(A, 14.0) == "http"
    assert chosen.choose(A, 15.0) == "mqtt"
    chosen.arrived("mqtt", 15.0)
    chosen.troubled("mqtt", 16.0)
    assert chosen.choose(A, 21.0) == "mqtt"


def test_a_source_that_lets_chunks_wait_is_left_for_another() -> None:
    chosen = sourcing(mqtt=Price(cost=0.0), http=Price(cost=1.0))
    chosen.lost("mqtt", [Digest.of(bytes([n])) for n in range(4)], 10.0)
    assert chosen.choose(A, 10.0) == "http"


def test_the_only_source_is_asked_whatever_happened() -> None:
    chosen = sourcing(mqtt=Price(cost=0.0))
    chosen.lost("mqtt", [Digest.of(bytes([n])) for n in range(9)], 10.0)
    assert chosen.choose(A, 10.0) == "mqtt"


def test_a_metered_link_is_only_asked_when_nothing_else_gives() -> None:
    chosen = sourcing(mqtt=Price(cost=0.0), http=Price(cost=1.0, hold_back=60.0))
    chosen.troubled("mqtt", 0.0)
    assert chosen.choose(A, 1.0) is None
    assert chosen.ready_at(1.0) == 5.0
    chosen.arrived("mqtt", 10.0)
    chosen.missing("mqtt", A)
    assert chosen.choose(A, 69.0) is None
    assert chosen.choose(A, 70.0) == "http"


class Choosing(RuleBasedStateMachine):
    """Sources fail in every order: with patience, each chunk is always offered to some source again."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.chosen = sourcing(mqtt=Price(cost=0.0), http=Price(cost=1.0, hold_back=30.0))

    @rule(name=st.sampled_from(["mqtt", "http"]), digest=st.sampled_from([A, B]))
    def missing(self, name: str, digest: Digest) -> None:
        self.chosen.missing(name, digest)

    @rule(name=st.sampled_from(["mqtt", "http"]))
    def troubled(self, name: str) -> None:
        self.chosen.troubled(name, self.now)

    @rule(name=st.sampled_from(["mqtt", "http"]))
    def arrived(self, name: str) -> None:
        self.chosen.arrived(name, self.now)

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def somebody_is_asked_in_the_end(self) -> None:
        assert self.chosen.choose(A, self.now + 200.0) is not None
        assert self.chosen.ready_at(self.now) <= self.now + 150.0


TestChoosing = Choosing.TestCase
TestChoosing.settings = settings(max_examples=40, stateful_step_count=20)


# --- how fast, how soon ---------------------------------------------------------------------------------


@given(st.integers(1000, 10**8), st.lists(st.integers(1, 262144), min_size=1, max_size=60))
@settings(max_examples=60)
def test_no_second_takes_more_than_the_rate_and_a_chunk(rate: int, sizes: list[int]) -> None:
    """Whoever always asks as soon as it may gets the rate over time, after the first second's worth."""
    bucket, now, taken = TokenBucket(rate), 0.0, 0
    for size in sizes:
        now = bucket.ready_at(now) + 1e-9
        assert bucket.take(size, now)
        assert taken <= rate * (now + 1.0) + 1
        taken += size


def test_a_bucket_without_a_rate_lets_all_through() -> None:
    bucket = TokenBucket()
    assert all(bucket.take(10**9, 0.0) for _ in range(10))
    assert bucket.ready_at(3.0) == 3.0


def test_devices_of_a_group_begin_spread_over_its_jitter_each_always_at_the_same_moment() -> None:
    delays = [delay(100.0, f"device-{n}", "7") for n in range(2000)]
    assert delays == [delay(100.0, f"device-{n}", "7") for n in range(2000)]
    assert all(0 <= x < 100 for x in delays)
    for tenth in range(10):
        assert 140 < sum(tenth * 10 <= x < tenth * 10 + 10 for x in delays) < 260
    assert delay(0.0, "d", "7") == 0.0


def test_groups_are_written_with_their_limits() -> None:
    first, second, third = parse_groups("1, 10%@500KB~300, 100%@1MiB/s")
    assert first == GroupSpec(count=1)
    assert second == GroupSpec(percent=10.0, rate=500_000, jitter=300.0)
    assert third.delivery == Delivery(rate=2**20)


@pytest.mark.parametrize(
    "text", ["10%@", "10%@fast", "1~", "1~soon", "@1MB", "1@1", "1~-1", "1~1e9", "1~nan"]
)
def test_limits_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises((PlanError, UserError)):
        parse_groups(text)


@pytest.mark.parametrize(("text", "count"), [("2GB", 2 * 10**9), ("64MiB", 2**26), ("1.5k", 1500), ("7", 7)])
def test_amounts_of_bytes_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count
    assert math.isclose(parse_bytes(format_bytes(count)), count, rel_tol=1e-5)


# --- what the broker keeps ------------------------------------------------------------------------------


def test_the_most_wanted_stay_and_shared_chunks_count_once() -> None:
    parcels = {"new": {"a": 600, "b": 600}, "huge": {"c": 9000}, "old": {"a": 600, "d": 600}, "x": {"e": 99}}
    assert fit(parcels, None) == ["new", "huge", "old", "x"]
    assert fit(parcels, 3 * 1000) == ["new", "old"]
    assert fit(parcels, 3 * 1000 + 499) == ["new", "old", "x"]
    assert fit(parcels, 0) == []


@given(
    st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9999), max_size=5), max_size=6),
    st.integers(0, 40_000),
)
def test_what_is_kept_never_exceeds_the_budget(parcels: list[dict[str, int]], budget: int) -> None:
    sizes = {chunk: size for parcel in parcels for chunk, size in parcel.items()}
    same = {number: {chunk: sizes[chunk] for chunk in parcel} for number, parcel in enumerate(parcels)}
    kept = fit(same, budget)
    assert sum(sizes[chunk] for chunk in {chunk for number in kept for chunk in same[number]}) <= budget


@given(st.sets(st.binary(max_size=8), max_size=20))
def test_a_catalogue_names_what_it_was_made_of(seeds: set[bytes]) -> None:
    named = {Digest.of(seed) for seed in seeds}
    told = catalogue.decode(catalogue.encode(named))
    assert all(digest in told for digest in named)
    assert Digest.of(b"something else than these") not in told


@given(st.binary(max_size=200))
def test_whatever_is_no_catalogue_is_refused_in_one_way(data: bytes) -> None:
    try:
        catalogue.decode(data)
    except WireError:
        return


def test_a_catalogue_without_end_is_refused() -> None:
    with pytest.raises(WireError, match="at most"):
        catalogue.decode(bytes(catalogue.CATALOGUE_LIMIT + 1))
