"""The console's pure parts: numbers and times in words, shapes, lists in URLs, lines of the live view."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.rollout.states import ActionStatus, GroupState, RolloutState
from fleet.wire.messages import UpdateState
from server.console import looks, shapes, templating
from server.console.listing import page_of
from server.console.pages import own_page
from server.console.views import audit, live, rollouts
from server.services.live import Happening


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (0.0031, "0.00310"), (3.16, "3.16"), (41.27, "41.3"),
     (1234.5, "1,234"),
     (math.inf, "inf")],
)  # fmt: skip
def test_figures_have_no_more_digits_than_help(value: float, text: str) -> None:
    assert templating.figure(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.775, "77.5 %"), (0.0004, "0.04 %"), (0.9996, "99.96 %")]
)
def test_a_share_that_is_not_quite_nothing_or_all_does_not_round_to_it(share: float, text: str) -> None:
    assert templating.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250 ms"), (42, "42 s"), (120, "2 min"), (5400, "90 min"), (7200, "2 h"), (50 * 3600, "2 d")],
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert templating.span(seconds) == text


@given(st.floats(0, 1e10))
def test_every_duration_has_words(seconds: float) -> None:
    assert templating.span(seconds)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**3, "5.0 GiB")]
)
def test_sizes_are_binary(count: int, text: str) -> None:
    assert templating.size(count) == text


def test_what_an_update_measured_has_units() -> None:
    told = templating.measured(
        {"p95_ms": 3.16, "max_abs_error": 0.0009, "samples": 12.0, "reused_bytes": 2048.0}
    )
    assert told == [
        ("largest error", "0.000900"), ("p95", "3.16 ms"), ("reused", "2.0 KiB"), ("samples", "12"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "page"),
    [
        ("/rollouts/3?group=1", "/rollouts/3?group=1"),
        ("", "/"),
        ("rollouts", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("/\t/evil.example/", "/"),
        ("https://evil.example/", "/"),
    ],
)
def test_a_login_leads_to_no_other_site(asked: str, page: str) -> None:
    """Somebody is sent a link to the login page that goes on to a copy of it elsewhere."""
    assert own_page(asked) == page


def test_every_part_of_a_rollout_has_its_place_in_the_list() -> None:
    assert sorted(rollouts.ATTENTION) == sorted(status.value for status in ActionStatus)


@given(st.lists(st.tuples(st.just("ok"), st.just("x"), st.integers(0, 1000)), max_size=8))
def test_a_bar_is_filled_exactly(counts: list[tuple[str, str, int]]) -> None:
    parts = shapes.parts(counts)
    total = sum(number for _, _, number in counts)
    assert sum(part.width for part in parts) == pytest.approx(100.0 if total else 0.0, abs=0.01)
    assert [part.x for part in parts] == sorted(part.x for part in parts)


def test_a_sparkline_skips_what_is_not_known() -> None:
    drawn = shapes.line([1.0, None, 2.0, None])
    assert drawn is not None
    assert drawn.path == "M0.00 16.00L66.67 2.00"
    assert shapes.line([None, 3.0]) is None
    assert shapes.line([0.0, 0.0]) is None


@pytest.mark.parametrize(
    ("table", "states"),
    [
        (looks.UPDATE, UpdateState), (looks.ROLLOUT, RolloutState), (looks.GROUP, GroupState),
        (looks.ACTION, ActionStatus),
    ],
)  # fmt: skip
def test_every_state_has_a_look(table: dict[str, looks.Look], states: type[UpdateState]) -> None:
    """A new state must not reach a screen as a bare word without a shape."""
    assert set(table) == {state.value for state in states}


def test_a_state_of_a_newer_device_is_shown_by_its_name() -> None:
    assert looks.look(looks.UPDATE, "cross_fading").text == "cross fading"


@given(st.lists(st.integers(), max_size=130), st.integers(-3, 9), st.booleans())
def test_pages_cut_a_list_without_loss(rows: list[int], page: int, descending: bool) -> None:
    """Every page that is asked for exists, and together they show each row once."""
    keys = {"value": lambda row: row}
    first = page_of(rows, path="/x", query={}, page=1, sort="value", descending=descending, keys=keys)
    shown = [
        row
        for number in range(1, first.pages + 1)
        for row in page_of(
            rows, path="/x", query={}, page=number, sort="value", descending=descending, keys=keys
        ).rows
    ]
    assert shown == sorted(rows, reverse=descending)
    asked = page_of(rows, path="/x", query={}, page=page)
    assert 1 <= asked.page <= asked.pages


def test_a_list_keeps_its_filters_in_every_link() -> None:
    view = page_of(list(range(99)), path="/x", query={"q": "a b", "state": ""}, page=1)
    assert view.at_page(2) == "/x?q=a+b&page=2"
    assert view.url(q=None) == "/x"
    assert view.sorted_by("size") == "/x?q=a+b&sort=size"


def test_only_what_differs_is_an_audited_change() -> None:
    changes = audit.changes(
        {"state": "running", "same": 1, "gone": True}, {"state": "paused", "same": 1, "reason": ""}
    )
    assert [(c.name, c.before, c.after) for c in changes] == [
        ("gone", "true", None),
        ("state", "running", "paused"),
    ]


@pytest.mark.parametrize(
    ("topic", "payload", "text"),
    [
        ("action", {"rollout": 3, "device": "a", "status": "in_progress", "step": "loading"},
         "a rollout 3: loading"),
        ("action", {"rollout": 3, "device": "a", "status": "failed", "reason": "no_space"},
         "a rollout 3: failed (no space)"),
        ("rollout", {"id": 3, "state": "halted", "reason": "too many"}, "rollout 3 halted (too many)"),
        ("rollout", {"id": 3, "state": "running", "group": 1}, "rollout 3 group 2 begins"),
        ("refusal", {"device": "a", "what": "chunk", "reason": "bad_digest"}, "a refused chunk (bad digest)"),
        ("report", {"device": "a", "model": "m", "requests": 7}, "a m: reported 7 requests"),
        ("offload", {"device": "a", "model": "m", "pool": "p", "error": ""}, "a m: answered by p"),
        ("release", {"id": 1, "model": "m", "version": "2"}, "m version 2 published"),
        ("device", {"id": "a", "what": "hello"}, "a said hello"),
    ],
)  # fmt: skip
def test_each_happening_is_told_in_one_line(topic: str, payload: dict[str, object], text: str) -> None:
    line = live.of(Happening(topic, payload), 0.0)
    assert line is not None
    assert f"{line.subject} {line.text}" == text


def test_a_happening_without_a_better_word_is_left_out() -> None:
    assert live.of(Happening("device", {"id": "a", "what": "updateevent"}), 0.0) is None
    assert live.of(Happening("unheard_of", {}), 0.0) is None


@pytest.mark.parametrize(
    ("verb", "told"),
    [("halt", "halted"), ("roll_back", "rolled back"), ("publish", "published"), ("approve", "approved"),
     ("enrol", "enrolled"), ("finish", "finished"), ("revoke", "revoked")],
)  # fmt: skip
def test_the_past_is_told_in_the_past_tense(verb: str, told: str) -> None:
    """The live page once said "rollout 2 halt by kedge"."""
    assert live.past(verb) == told
