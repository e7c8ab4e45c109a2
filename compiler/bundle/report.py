"""What the report of a compilation says, and its form as JSON; `compiler.bundle.page` makes the page."""

from __future__ import annotations

from typing import Final

import msgspec

from compiler.bundle.data import DataFacts
from compiler.candidates import Candidate
from compiler.measuring.parity import Parity
from compiler.measuring.sensitivity import Sensitivity
from compiler.placement.summary import Placement
from compiler.requests import Sizes, Verdict
from compiler.search.verdicts import ELIGIBLE, TOO_SLOW
from firmware_profiles.profile import Profile
from fleet.bundle.description import BundleDescription

JSON: Final = "report.json"
HTML: Final = "report.html"
#: Tools that are no distribution of their name on the Python Package Index.
_PURLS: Final = {
    "edgetpu-compiler": "pkg:generic/edgetpu-compiler",
    "openvino-2022": "pkg:pypi/openvino",
}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the report says.

    Attributes:
        verdicts: without latencies in the bundle, with them in the page beside it.
        parity: the artifact's outputs against float's on the report half.
        sensitivity: what each node loses by quantization; None where that says nothing.
        data: what it was calibrated, chosen and judged on.
        inputs: digests of the files that went in.
        tools: name to version.
        asked_precision, asked_candidate: what the user restricted the search to, or "".
        confirmed: candidates that were looked at on the report half; the last one was chosen.
        latency_note: on what the latencies were measured; "" where there are none.
    """

    about: BundleDescription
    profile: Profile
    candidate: Candidate
    sizes: Sizes
    verdicts: tuple[Verdict, ...]
    placement: Placement
    parity: Parity
    sensitivity: Sensitivity | None
    data: DataFacts
    warnings: tuple[str, ...]
    tools: dict[str, str]
    inputs: dict[str, str]
    max_drop: float
    asked_precision: str
    asked_candidate: str
    confirmed: tuple[str, ...]
    latency_note: str = ""


def purl(tool: str, version: str) -> str:
    """Return a tool's package URL."""
    return f"{_PURLS.get(tool, f'pkg:pypi/{tool}')}@{version}"


def untimed(verdict: Verdict) -> Verdict:
    """Return a verdict as every machine would give it."""
    status = ELIGIBLE if verdict.status == TOO_SLOW else verdict.status
    return msgspec.structs.replace(verdict, status=status, latency_ms=None)


def as_json(found: Facts) -> bytes:
    """Return the report as JSON."""
    return msgspec.json.format(msgspec.json.encode(found, order="deterministic"), indent=1) + b"\n"
