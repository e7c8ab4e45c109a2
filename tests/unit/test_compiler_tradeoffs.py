"""What a choice gave up is said in words, and only where it is worth one."""

from __future__ import annotations

from compared import compared
from compiler.candidates import FLOAT, Candidate, Scheme
from compiler.search import tradeoffs
from compiler.search.rules import Measured


def measured(
    name: str,
    size: int,
    agreement: float,
    ms: float | None = None,
    lost: int = 0,
    backend: str = "onnxruntime",
) -> Measured:
    """Return a candidate measured on 1000 samples."""
    candidate = Candidate(name=name, precision="int8", scheme=Scheme.STATIC, backend=backend)
    return Measured(
        candidate=FLOAT if name == "float" else candidate,
        size=size,
        latency_ms=ms,
        selection=compared(samples=1000, lost=lost, agreement=agreement),
    )


CHOSEN = measured("chosen", 300, 0.99, 1.0)
ORIGINAL = measured("float", 1000, 1.0, 2.0)


def test_more_agreement_and_less_size_are_named_with_their_price() -> None:
    table = [ORIGINAL, CHOSEN, measured("near", 420, 0.992), measured("tiny", 240, 0.985)]
    assert tradeoffs.given_up(table, CHOSEN, 0.5) == [
        "0.2 points more agreement were available at 1.40 times the size (near)",
        "20 % less size was available for 0.5 points less agreement (tiny)",
    ]


def test_the_best_of_all_gave_up_nothing() -> None:
    table = [ORIGINAL, CHOSEN, measured("worse", 400, 0.98), measured("hardly smaller", 299, 0.98)]
    assert tradeoffs.given_up(table, CHOSEN, 0.5) == []


def test_what_does_not_keep_the_budget_was_never_available() -> None:
    table = [ORIGINAL, CHOSEN, measured("lossy", 100, 0.99, 0.1, lost=20), measured("luck", 100, 0.999, 0.1)]
    assert tradeoffs.given_up(table, CHOSEN, 0.5, {"luck"}) == []
    assert tradeoffs.slower_than(table, CHOSEN, 0.5, {"luck"}) == []


def test_another_runtime_may_be_faster_here() -> None:
    other = measured("ov", 390, 0.991, 0.5, backend="openvino")
    near = measured("near", 300, 0.99, 0.95)
    assert tradeoffs.slower_than([ORIGINAL, CHOSEN, near], CHOSEN, 0.5) == []
    (said,) = tradeoffs.slower_than([ORIGINAL, CHOSEN, near, other], CHOSEN, 0.5)
    assert said.startswith("another runtime is faster here: ov takes 0.5 ms against 1 ms, at 1.30 times")
    assert said.endswith("for 0.1 points more agreement")
