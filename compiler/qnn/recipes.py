"""Which ways to put a model on the HTP are tried. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from compiler.candidates import Candidate, Scheme
from firmware_profiles.profile import Precision

BACKEND: Final = "qnn"
#: Whether weights have a scale per channel, and how ranges are found; 16 bits need no clipping to be fine.
_WAYS: Final = {
    Precision.INT8: (
        (True, "minmax"),
        (True, "percentile"),
        (True, "mse"),
        (False, "minmax"),
        (False, "percentile"),
    ),
    Precision.INT16: ((True, "minmax"), (True, "percentile"), (False, "minmax")),
}
#: Bits of activations and weights, as Qualcomm writes them.
_BITS: Final = {Precision.INT8: "a8w8", Precision.INT16: "a16w8"}


def plan(precisions: Sequence[Precision]) -> list[Candidate]:
    """Return the candidates for a target that computes in these number formats."""
    found = [
        Candidate(
            name=f"{_BITS[precision]}-{'channel' if per_channel else 'tensor'}-{method}",
            precision=precision.value,
            scheme=Scheme.STATIC,
            backend=BACKEND,
            per_channel=per_channel,
            calibration=method,
        )
        for precision, ways in _WAYS.items()
        if precision in precisions
        for per_channel, method in ways
    ]
    if Precision.FLOAT16 in precisions:
        half = Precision.FLOAT16.value
        found.append(Candidate(name=half, precision=half, scheme=Scheme.HALF, backend=BACKEND))
    return found
