"""Tool-chains at work beside one another: what is told, and what becomes of errors."""

from __future__ import annotations

import threading

import pytest

from compiler import beside
from compiler.beside import AND, Beside
from compiler.errors import CompileError


def test_what_all_are_at_is_told_in_one_line() -> None:
    told: list[tuple[str, int, int, str]] = []
    progress = Beside(lambda *x: told.append(x), 3)
    progress.at("a", "try", "one", counts=True)
    progress.at("b", "try", "two", counts=True)
    progress.at("a", "find", "finer")
    progress.done("b")
    progress.at("a", "try", "three", counts=True)
    progress.at("a", "try", "four", counts=True)
    assert told == [
        ("try", 0, 3, "one"),
        ("try", 1, 3, f"one{AND}two"),
        ("find", 2, 3, f"finer{AND}two"),
        ("try", 2, 3, "three"),
        ("try", 3, 3, "four"),
    ]


def test_at_once_means_at_once() -> None:
    """Each waits for the other: in turn they would wait for ever."""
    meeting = threading.Barrier(2, timeout=20)
    beside.run({"a": lambda: _meet(meeting), "b": lambda: _meet(meeting)}, at_once=True)


def _meet(barrier: threading.Barrier) -> None:
    barrier.wait()


@pytest.mark.parametrize("at_once", [True, False])
def test_an_error_comes_out(*, at_once: bool) -> None:
    def fail() -> None:
        raise CompileError("no")

    with pytest.raises(CompileError, match="no"):
        beside.run({"a": lambda: None, "b": fail}, at_once=at_once)


def test_in_turn_is_in_order() -> None:
    order: list[str] = []
    beside.run({x: (lambda x=x: order.append(x)) for x in "abc"}, at_once=False)  # type: ignore[misc]  # lambda
    assert order == ["a", "b", "c"]
