"""Which nodes are left in float: the noisiest, and no more of them than an aim asks for."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.quantizing import refining

NOISES = st.lists(st.floats(0, 10), min_size=1, max_size=60)


def choices(noises: list[float]) -> tuple[list[refining.Nodes], int]:
    """Return the choices for nodes of these noises, which add up, and how often one was asked for."""
    table = {f"n{i}": x for i, x in enumerate(noises)}
    looks: list[refining.Nodes] = []

    def alone(nodes: refining.Nodes) -> float:
        looks.append(nodes)
        noise = sum(table[x] for x in nodes)
        return -10 * math.log10(noise) if noise else math.inf

    return refining.choices(list(table), alone), len(looks)


def test_two_bad_nodes_do_not_hide_each_other() -> None:
    """Leaving out either alone wins nothing; both are found, and nothing else."""
    found, _ = choices([1e-4, 1e-4, 5.0, 1e-4, 3.0])
    assert found[0] == ("n2", "n4")


def test_without_a_bad_node_there_is_nothing_to_leave_out() -> None:
    assert choices([1e-9] * 5)[0] == []


def test_a_large_model_is_looked_at_in_parts_first() -> None:
    noises = [1e-7] * 1000
    noises[617] = 4.0
    found, looks = choices(noises)
    assert looks <= refining.PARTS + refining.SINGLE
    assert "n617" in found[0]
    assert len(found[0]) < 60


@settings(max_examples=60)
@given(NOISES)
def test_choices_grow_and_keep_their_aim(noises: list[float]) -> None:
    """Each leaves out all that the one before did; what stays is quieter than the boldest aim."""
    found, looks = choices(noises)
    assert looks <= refining.PARTS + refining.SINGLE
    assert len(found) <= len(refining.AIMS)
    for less, more in itertools.pairwise(found):
        assert less == more[: len(less)]
    for left in found:
        assert 0 < len(left) < len(noises)
        rest = sum(x for i, x in enumerate(noises) if f"n{i}" not in left)
        assert rest <= 10 ** (-refining.AIMS[0] / 10) + 1e-6
