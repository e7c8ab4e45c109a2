"""What became of each candidate, in words."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from compiler.candidates import FLOAT, Candidate
from compiler.measuring.evaluate import SNR_FLOOR
from compiler.measuring.parity import rounded
from compiler.requests import Verdict
from compiler.search import rules
from compiler.search.rules import Measured
from compiler.search.trials import Trials
from firmware_profiles.profile import Profile

TOO_SLOW = "too slow"
ELIGIBLE = "eligible"
CRASHED = "crashed"
NOT_TRIED = "not tried"


def of(
    trials: Trials, refused: Mapping[Candidate, str], chosen: Candidate | None, max_drop: float
) -> tuple[Verdict, ...]:
    """Return the verdicts, in the order of the trials, failed ones last."""
    original = trials.original
    large = {x.candidate for x in rules.hardly_smaller(trials.measured)}
    found = []
    for x in trials.measured:
        status, reason = _status(x, original, max_drop, large=x.candidate in large)
        if x.candidate in refused:
            status, reason = "not confirmed", refused[x.candidate]
        if x.candidate == chosen:
            status, reason = "chosen", ""
        found.append(
            Verdict(
                name=x.candidate.name,
                precision=x.candidate.precision,
                scheme=x.candidate.scheme.value,
                backend=x.candidate.backend,
                status=status,
                reason=reason,
                size_bytes=x.size,
                drop_points=x.selection.drop_points(),
                agreement=x.selection.agreement,
                snr_db=rounded(x.selection.snr),
                latency_ms=x.latency_ms,
            )
        )
    found += [_unmeasured(x, "failed", reason) for x, reason in trials.failed.items()]
    found += [_unmeasured(x, CRASHED, reason) for x, reason in trials.crashed.items()]
    found += [_unmeasured(x, NOT_TRIED, "time budget") for x in trials.untried]
    return tuple(found)


def _unmeasured(x: Candidate, status: str, reason: str) -> Verdict:
    return Verdict(
        name=x.name,
        precision=x.precision,
        scheme=x.scheme.value,
        backend=x.backend,
        status=status,
        reason=reason,
    )


def _status(x: Measured, original: Measured, max_drop: float, *, large: bool) -> tuple[str, str]:
    if x.candidate == FLOAT:
        return ELIGIBLE, "the model as it is"
    if not x.selection.keeps(max_drop):
        side = x.selection.side_snr
        if side < SNR_FLOOR:
            return "over budget", f"another output at {side:.0f} dB"
        equal = x.selection.side_agreement
        return "over budget", f"another output differs in {1 - equal:.2%}" if equal < 1 else ""
    if large:
        return "not smaller", ""
    return (TOO_SLOW, "") if rules.too_slow(x, original) else (ELIGIBLE, "")


def timing_warnings(chosen: Measured, original: Measured, profile: Profile) -> tuple[str, ...]:
    """Return what the latencies say; they depend on this machine, so they stay out of the bundle."""
    found = []
    ours, theirs = chosen.latency_ms, original.latency_ms
    if ours is not None and theirs is not None and ours > theirs and chosen.candidate != FLOAT:
        found.append(
            f"{chosen.candidate.name} is slower than float here ({ours:.3g} ms against {theirs:.3g} ms) and "
            f"was chosen for its size; for speed: --precision float32"
        )
    if ours is not None and platform.machine() != profile.architecture:
        found.append(f"latency was measured on {platform.machine()}, not on {profile.architecture}")
    return tuple(found)
