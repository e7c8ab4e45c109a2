"""The report's page: it stands alone, says what there is to say, and lets no name break out of its place."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from compiler.bundle.page import figures, plot, render
from compiler.bundle.page.front import front
from fleet.bundle.description import Accuracy
from report_facts import FACTS, PLACEMENT, SENSITIVITY, VERDICTS, verdict


class Elements(HTMLParser):
    """Every tag of a page, and everything that one points to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src", "srcset", "action"}]


def page(**changes: object) -> str:
    return render.as_html(msgspec.structs.replace(FACTS, **changes)).decode()


def test_the_page_needs_nothing_from_anywhere() -> None:
    """A report is opened years later, on a machine without a network."""
    text = page()
    found = Elements()
    found.feed(text)
    assert found.links
    assert all(x.startswith("#") for x in found.links)
    assert not found.tags & {"script", "img", "link", "iframe", "object", "embed"}
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text


def test_names_from_a_model_are_text_and_nothing_else() -> None:
    """A node, an output or an error may be called anything."""
    text = page()
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_the_same_facts_give_the_same_page() -> None:
    assert page() == page()


def test_warnings_come_before_numbers_and_numbers_before_tables() -> None:
    text = page()
    assert text.index("Know first") < text.index('class="tiles"') < text.index("<table")


def test_the_summary_says_how_sure_it_is_and_what_it_was_measured_in() -> None:
    summary = page().split('<section id="candidates"')[0]
    for words in ("89.50 %", "float 90.00 %", "+0.50", "+1.90", "98.00 %", "92.00 %", "LiteRT on this CPU"):
        assert words in summary, words
    assert "the target has 8.0 MiB" in summary


def test_a_report_without_labels_latencies_or_sensitivity_is_whole_too() -> None:
    accuracy = Accuracy(
        original=None, compiled=None, drop_points=None, agreement=0.98, interval=(0.7, 4.4), samples=200
    )
    about = msgspec.structs.replace(FACTS.about, accuracy=accuracy, offload=None)
    bare = [msgspec.structs.replace(x, latency_ms=None) for x in VERDICTS]
    data = msgspec.structs.replace(FACTS.data, classes=0)
    text = page(about=about, verdicts=tuple(bare), sensitivity=None, latency_note="", warnings=(), data=data)
    assert "Know first" not in text
    assert 'id="sensitivity"' not in text
    assert text.count("<svg viewBox") == 1 + 5  # one plot, and the legend
    assert "points of disagreement" in text
    assert "without labels" in text
    assert "None" not in text


def test_the_front_is_what_no_other_candidate_beats() -> None:
    assert front(VERDICTS) == {"static-channel-mse", "float"} - {"float"}
    small = verdict("small", "eligible", size_bytes=20_000, drop_points=0.4, latency_ms=0.3)
    quick = verdict("quick", "eligible", size_bytes=40_000, drop_points=0.4, latency_ms=0.1)
    assert front([*VERDICTS, small, quick]) == {"static-channel-mse", "small", "quick"}
    untimed = verdict("untimed", "eligible", size_bytes=31_000, drop_points=-0.1)
    assert front([*VERDICTS, untimed]) == {"static-channel-mse", "untimed"}


def test_where_no_answer_differs_noise_is_the_loss() -> None:
    quiet = verdict("quiet", "eligible", drop_points=0.0, snr_db=60.0, size_bytes=2)
    noisy = verdict("noisy", "chosen", drop_points=0.0, snr_db=20.0, size_bytes=1)
    bad = verdict("bad", "eligible", drop_points=0.0, snr_db=19.0, size_bytes=2)
    assert front([quiet, noisy, bad]) == {"quiet", "noisy"}
    (picture,) = figures.plots([quiet, noisy, bad], 0.5, labels=False)
    assert "signal to noise, dB" in picture


def points(picture: str, kind: str) -> int:
    return len(re.findall(rf'<(?:circle|polygon) class="{kind}"', picture))


def test_the_pictures_show_every_candidate_that_ran_and_mark_the_hopeless_as_arrows() -> None:
    pictures = figures.plots(VERDICTS, 0.5, labels=True)
    assert len(pictures) == 2
    for picture in pictures:
        assert points(picture, "chosen") == 1
        assert points(picture, "over") == 2
        assert picture.count("<polygon") == 1
        assert "budget 0.5" in picture
    assert figures.plots([VERDICTS[-1]], 0.5, labels=True) == []


RANGES = [(0, 1), (-2.2, 0.2), (0, 320.5), (-0.001, 0.0001), (0, 1e-7), (3, 71)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    ticks = plot._ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] < ticks[-1] <= high
    assert all(len(f"{x:.12g}".strip("-0.").replace(".", "")) <= 3 or "e" in f"{x:.12g}" for x in ticks)


def test_ratios_get_ticks_of_ratios_and_labels_never_lie_on_each_other() -> None:
    assert plot._ratio_ticks(0.15, 4.0) == pytest.approx([0.2, 0.5, 1, 2])
    assert plot._numbers([3, 1, 7, 5, 6, 9]) == "1, 3, 5\N{EN DASH}7, 9"
    crowd = [verdict(f"v{i}", "eligible", drop_points=i / 50, size_bytes=30_000 + 900 * i) for i in range(20)]
    (picture,) = figures.plots(crowd, 0.5, labels=True)
    found = re.findall(r'<text class="number[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', picture)
    boxes = [(float(x), float(y), plot._LETTER * len(text), plot._LINE) for x, y, text in found]
    assert len(boxes) >= 5
    assert not any(plot._overlap(a, b) for a in boxes for b in boxes if a is not b)


def test_bars_are_shares_of_the_noise() -> None:
    bars = figures.bars(SENSITIVITY)
    assert [x.name for x in bars] == [x.name for x in SENSITIVITY.nodes]
    assert sum(x.share for x in bars) == pytest.approx(1.0)
    assert bars[0].share / bars[1].share == pytest.approx(10**0.7)


def test_nodes_of_one_kind_and_fate_are_one_row() -> None:
    groups = figures.groups(PLACEMENT)
    assert [(x.operator, x.nodes, x.unit) for x in groups] == [
        ("CONV_2D", 2, "accelerator"),
        ("GELU", 1, "cpu"),
        ("LSTM", 1, "refused"),
        ("RESHAPE", 1, "accelerator"),
    ]
    assert groups[0].macs == 2_300_000
    assert [(x.operator, x.nodes, x.takes) for x in figures.offers(PLACEMENT)] == [
        ("CONV_2D", 2, True),
        ("GELU", 1, False),
        ("LSTM", 1, False),
        ("RESHAPE", 1, False),
    ]
    assert figures.sources(PLACEMENT) == [
        "Maker's documentation, operators",
        "Trials, November 2026",
        "DLA documentation",
    ]


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (render.size(None), "\N{EN DASH}"),
        (render.size(900), "900 B"),
        (render.size(30_000), "29 KiB"),
        (render.size(9 * 1024**2), "9.0 MiB"),
        (render.size(16 * 1024**3), "16.0 GiB"),
        (render.count(768), "768"),
        (render.count(2_656_768), "2.66 M"),
        (render.count(4_100_000_000), "4.1 G"),
        (render.count(None), "\N{EN DASH}"),
        (render.points(-1.075), "\N{MINUS SIGN}1.07"),
        (render.percent(0.5), "50.00 %"),
        (render.decibels(200.0), "no noise"),
        (render.decibels(-200.0), "not comparable"),
        (render.decibels(None), "\N{EN DASH}"),
        (render.decibels(0.0), "0.0 dB"),
        (render.brief("short"), "short"),
        (len(render.brief("x" * 500)), 59),
    ],
)
def test_numbers_read_well(got: str, want: str) -> None:
    assert got == want


def test_a_failed_candidate_says_why() -> None:
    assert "failed: no &lt;script&gt;" in page()
