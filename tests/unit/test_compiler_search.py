"""The rule that chooses among candidates."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from compared import compared
from compiler.candidates import FLOAT, Candidate, Scheme
from compiler.measuring.evaluate import Comparison
from compiler.measuring.statistics import Paired
from compiler.search import rules
from compiler.search.rules import Measured


def measured(
    name: str,
    scheme: Scheme = Scheme.STATIC,
    *,
    size: int = 300,
    lost: int = 0,
    agreement: float = 0.99,
    ms: float | None = 1.0,
) -> Measured:
    """Return a candidate measured on 200 samples."""
    candidate = FLOAT if scheme is Scheme.FLOAT else Candidate(name=name, precision="int8", scheme=scheme)
    return Measured(
        candidate=candidate,
        size=size,
        latency_ms=ms,
        selection=compared(samples=200, lost=lost, agreement=agreement),
    )


ORIGINAL = measured("float", Scheme.FLOAT, size=1000, agreement=1.0, ms=2.0)


def names(found: list[Measured]) -> list[str]:
    return [x.candidate.name for x in found]


def best(*others: Measured, max_drop: float = 0.5) -> str:
    return names(rules.ranking([ORIGINAL, *others], ORIGINAL, max_drop))[0]


def test_a_candidate_over_the_budget_never_wins() -> None:
    """Two of 200 is one point, against a budget of half a point."""
    assert best(measured("a", lost=2)) == "float"
    assert best(measured("a", lost=1)) == "a"


def test_few_samples_make_the_budget_strict() -> None:
    """On 100 samples half a point is no answer at all."""
    comparison = Comparison(
        pairs=Paired(lost=1, won=0, samples=100),
        accuracy_float=0.9,
        accuracy=0.89,
        agreement=0.99,
        snr=30.0,
        side_snr=200.0,
        samples=100,
    )
    assert not comparison.keeps(0.5)
    assert comparison.keeps(1.0)


def test_what_is_not_smaller_than_float_is_out() -> None:
    assert best(measured("a", size=1000, ms=0.1)) == "float"


def test_what_is_not_smaller_than_the_smallest_float_is_out() -> None:
    """Another runtime writes the same net more broadly: that makes nothing else small."""
    broad = Candidate(name="broad", precision="float32", scheme=Scheme.FLOAT, backend="other")
    table = [
        msgspec.structs.replace(ORIGINAL, candidate=broad, size=4000),
        ORIGINAL,
        measured("a", size=1500),
    ]
    assert [x.candidate.name for x in rules.eligible(table, 0.5)] == ["broad", "float"]


def test_integers_go_before_unpacked_weights_and_those_before_float() -> None:
    weights = measured("w", Scheme.WEIGHT_ONLY, size=200, agreement=1.0)
    assert names(rules.ranking([ORIGINAL, weights, measured("s")], ORIGINAL, 0.5)) == ["s", "w", "float"]


def test_a_much_slower_scheme_loses_to_a_faster_one() -> None:
    dynamic = measured("d", Scheme.DYNAMIC, agreement=1.0, ms=1.6)
    assert best(dynamic, measured("s", ms=1.0)) == "s"


def test_a_little_slower_is_as_fast() -> None:
    """A measured time wavers: within the margin it decides nothing."""
    dynamic = measured("d", Scheme.DYNAMIC, agreement=1.0, ms=1.4)
    assert best(dynamic, measured("s", ms=1.0)) == "d"


def test_among_equally_small_the_most_faithful_wins() -> None:
    assert best(measured("a", size=300), measured("b", size=390, agreement=0.995)) == "b"
    assert best(measured("a", size=300), measured("b", size=410, agreement=0.995)) == "a"


def test_far_slower_than_float_is_vetoed_unless_asked_for() -> None:
    slow = measured("a", ms=4.1)
    assert names(rules.ranking([ORIGINAL, slow], ORIGINAL, 0.5)) == ["float"]
    assert names(rules.ranking([ORIGINAL, slow], ORIGINAL, 0.5, veto=False)) == ["a", "float"]


def test_a_net_too_fast_to_measure_is_not_vetoed() -> None:
    tiny = measured("float", Scheme.FLOAT, size=1000, ms=0.01)
    assert names(rules.ranking([tiny, measured("a", ms=0.05)], tiny, 0.5))[0] == "a"


candidates = st.builds(
    measured,
    st.sampled_from("abcdefgh"),
    st.sampled_from([Scheme.STATIC, Scheme.DYNAMIC, Scheme.WEIGHT_ONLY]),
    size=st.integers(100, 1200),
    lost=st.integers(0, 3),
    agreement=st.sampled_from([0.95, 0.98, 1.0]),
    ms=st.one_of(st.none(), st.floats(0.1, 10)),
)


@settings(max_examples=60)
@given(st.lists(candidates, max_size=8), st.sampled_from([0.0, 0.5, 1.0]))
def test_whatever_was_measured_float_is_last_and_all_before_it_keep_the_rules(
    found: list[Measured], max_drop: float
) -> None:
    ranked = rules.ranking([ORIGINAL, *found], ORIGINAL, max_drop)
    assert ranked[-1] is ORIGINAL
    for x in ranked[:-1]:
        assert x.selection.keeps(max_drop)
        assert x.size < ORIGINAL.size
    assert len(ranked) == len({id(x) for x in ranked})
    assert names(ranked) == names(rules.ranking([ORIGINAL, *found], ORIGINAL, max_drop))


@settings(max_examples=60)
@given(st.lists(candidates, max_size=8, unique_by=lambda x: x.candidate.name), st.randoms())
def test_the_order_of_the_trials_decides_nothing(found: list[Measured], chance: Random) -> None:
    shuffled = list(found)
    chance.shuffle(shuffled)
    want = names(rules.ranking([ORIGINAL, *found], ORIGINAL, 0.5))
    assert names(rules.ranking([*shuffled, ORIGINAL], ORIGINAL, 0.5)) == want


@settings(max_examples=60)
@given(st.lists(candidates, max_size=8), st.floats(0, 2), st.floats(0, 2))
def test_a_larger_budget_takes_nothing_away(found: list[Measured], one: float, other: float) -> None:
    """Whoever allows more keeps every candidate, and gets integers where there were integers."""
    small, large = sorted((one, other))
    table = [ORIGINAL, *found]
    allowed = [id(x) for x in rules.eligible(table, large)]
    assert all(id(x) in allowed for x in rules.eligible(table, small))
    order = [Scheme.STATIC, Scheme.DYNAMIC, Scheme.WEIGHT_ONLY, Scheme.FLOAT]
    first, second = (rules.ranking(table, ORIGINAL, x)[0].candidate.scheme for x in (small, large))
    assert max(1, order.index(second)) <= max(1, order.index(first))
