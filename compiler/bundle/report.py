"""The report of a compilation, as JSON and as a page that needs no network."""

from __future__ import annotations

import importlib.resources
from typing import Final

import jinja2
import msgspec

from compiler.bundle import scatter
from compiler.candidates import Candidate
from compiler.placement.summary import Placement
from compiler.requests import CompileRequest, Sizes, Verdict
from compiler.verdicts import ELIGIBLE, TOO_SLOW
from firmware_profiles.profile import Profile
from fleet.bundle.description import BundleDescription

JSON: Final = "report.json"
HTML: Final = "report.html"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the report says.

    Attributes:
        verdicts: without latencies in the bundle, with them in the page beside it.
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
    warnings: tuple[str, ...]
    tools: dict[str, str]
    inputs: dict[str, str]
    max_drop: float
    asked_precision: str
    asked_candidate: str
    confirmed: tuple[str, ...]
    latency_note: str = ""


def facts(
    *,
    about: BundleDescription,
    profile: Profile,
    candidate: Candidate,
    sizes: Sizes,
    verdicts: tuple[Verdict, ...],
    placement: Placement,
    warnings: tuple[str, ...],
    tools: dict[str, str],
    inputs: dict[str, str],
    request: CompileRequest,
    confirmed: tuple[str, ...],
) -> Facts:
    """Return the facts that are the same for the same inputs: those without latencies."""
    return Facts(
        about=about,
        profile=profile,
        candidate=candidate,
        sizes=sizes,
        verdicts=tuple(map(_untimed, verdicts)),
        placement=placement,
        warnings=warnings,
        tools=tools,
        inputs=inputs,
        max_drop=request.max_drop,
        asked_precision=request.precision,
        asked_candidate=request.candidate,
        confirmed=confirmed,
    )


def _untimed(verdict: Verdict) -> Verdict:
    status = ELIGIBLE if verdict.status == TOO_SLOW else verdict.status
    return msgspec.structs.replace(verdict, status=status, latency_ms=None)


def as_json(found: Facts) -> bytes:
    """Return the report as JSON."""
    return msgspec.json.format(msgspec.json.encode(found, order="deterministic"), indent=1) + b"\n"


def as_html(found: Facts) -> bytes:
    """Return the report as one page: styles and pictures inside, light and dark."""
    text = importlib.resources.files("compiler.bundle").joinpath("report.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["size"] = size
    return environment.from_string(text).render(f=found, picture=scatter.svg(found.verdicts)).encode()


def size(count: int | None) -> str:
    """Return a number of bytes for a person."""
    if count is None:
        return "-"
    if count < 10 * 1024:
        return f"{count} B"
    return f"{count / 1024:.0f} KiB" if count < 10 * 1024**2 else f"{count / 1024**2:.1f} MiB"
