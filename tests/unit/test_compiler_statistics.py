"""Paired comparison: counts, budgets and intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.measuring.statistics import (
    Paired,
    disagreement_interval,
    drop_interval,
    net_losses_allowed,
    paired,
)


def test_only_samples_on_which_the_models_differ_count() -> None:
    original = np.array([True, True, False, False, True])
    compiled = np.array([True, False, True, False, False])
    assert paired(original, compiled) == Paired(lost=2, won=1, samples=5)
    assert paired(original, compiled).drop_points == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("max_drop", "samples", "allowed"), [(0.5, 199, 0), (0.5, 200, 1), (1.0, 300, 3), (0, 9999, 0)]
)
def test_the_budget_in_answers(max_drop: float, samples: int, allowed: int) -> None:
    assert net_losses_allowed(max_drop, samples) == allowed


def test_the_drop_interval_of_a_published_example() -> None:
    """Bonett and Price (2012), n = 100, discordant 15 and 5: p12 - p21 = 10/102, SE = 0.0436."""
    low, high = drop_interval(Paired(lost=15, won=5, samples=100))
    assert low == pytest.approx(1.16, abs=0.3)
    assert high == pytest.approx(18.4, abs=0.3)


@settings(max_examples=80)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 400))
def test_an_interval_holds_its_estimate_and_shrinks_with_confidence(lost: int, won: int, same: int) -> None:
    pairs = Paired(lost=lost, won=won, samples=lost + won + same + 1)
    low, high = drop_interval(pairs)
    narrow_low, narrow_high = drop_interval(pairs, 0.8)
    assert -100 <= low <= narrow_low <= narrow_high <= high <= 100
    share = (lost - won) / (pairs.samples + 2) * 100
    assert low - 1e-9 <= share <= high + 1e-9


@settings(max_examples=60)
@given(st.floats(0, 1), st.integers(1, 5000))
def test_the_disagreement_interval_holds_its_estimate(agreement: float, samples: int) -> None:
    low, high = disagreement_interval(agreement, samples)
    assert 0 <= low <= 100 * (1 - agreement) + 1e-6
    assert high >= 100 * (1 - agreement) - 1e-6
