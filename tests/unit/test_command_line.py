"""The command line's front: what a mistake looks like, and what may reach a terminal."""

from __future__ import annotations

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.options import FiniteRange
from fleet.text import printable


@settings(max_examples=100)
@given(st.text())
def test_whatever_a_file_says_nothing_steers_the_terminal(text: str) -> None:
    """Names in a model or a device's report may hold escape sequences, line ends, or turned-round text."""
    assert printable(text).isprintable()


def test_an_escape_sequence_is_shown_as_text() -> None:
    assert printable("a\x1b[31mred\u202e\nb") == r"a\x1b[31mred\u202e b"
    assert printable("größer als 5 µm → 模型") == "größer als 5 µm → 模型"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    """Every comparison with NaN is false, so it is never outside a range."""
    with pytest.raises(click.BadParameter, match=r"finite|range"):
        FiniteRange(0).convert(text, None, None)  # type: ignore[arg-type]  # click passes what was typed
