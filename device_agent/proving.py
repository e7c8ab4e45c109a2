"""Proving a candidate: golden vectors, then beside the active bundle, then in its place.

Nothing here decides what follows: each function ends with `Done` or `Failed` and what it measured.
"""

from __future__ import annotations

import io
import queue
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from device_agent.errors import RuntimeFailure
from device_agent.ports import Array
from device_agent.serving.engine import Canary, Engine, Slot, Tap
from device_agent.serving.instance import Instance
from device_agent.update.events import Done, Failed
from fleet.bundle.description import BundleDescription, TensorSpec, Tolerance
from fleet.errors import BundleError

#: So many live requests compared are enough.
SHADOW_ENOUGH: Final = 50
#: From so many on, agreement below the floor is a fault, not bad luck.
SHADOW_FEWEST: Final = 20
AGREEMENT_FLOOR: Final = 0.5
#: A canary may be so much slower than it was on golden vectors, which ran with nobody else around.
SLOWER: Final = 10.0
SLACK_MS: Final = 100.0
#: Of fewer requests the median is looked at: one hiccup of the machine would be their p95.
FEWEST_FOR_P95: Final = 20
_PROBES_PER_SECOND: Final = 4.0


class Vectors(NamedTuple):
    """Golden vectors of a bundle: one request and its outputs per sample."""

    inputs: list[dict[str, Array]]
    outputs: list[dict[str, Array]]
    tolerance: Mapping[str, Tolerance]


def vectors(description: BundleDescription, read: Callable[[str], bytes]) -> Vectors:
    """Read a bundle's golden vectors.

    Raises:
        BundleError: a file is missing or malformed, or does not hold what the description says.
    """
    golden = description.golden
    inputs = _arrays(read(golden.inputs), golden.inputs, description.inputs, golden.samples)
    outputs = _arrays(read(golden.outputs), golden.outputs, description.outputs, golden.samples)
    return Vectors(
        [_sample(inputs, description.inputs, i) for i in range(golden.samples)],
        [_sample(outputs, description.outputs, i) for i in range(golden.samples)],
        golden.tolerance,
    )


def _arrays(data: bytes, path: str, specs: tuple[TensorSpec, ...], samples: int) -> dict[str, Array]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise BundleError(f"{path}: {error}") from error
    for spec in specs:
        if spec.name not in arrays or arrays[spec.name].shape[:1] != (samples,):
            raise BundleError(f"{path}: expected {samples} samples of {spec.name!r}")
    if not samples:
        raise BundleError(f"{path}: expected at least one sample, got 0")
    return arrays


def _sample(arrays: Mapping[str, Array], specs: tuple[TensorSpec, ...], index: int) -> dict[str, Array]:
    return {
        spec.name: np.asarray(
            arrays[spec.name][index : index + 1] if spec.batched else arrays[spec.name][index]
        )
        for spec in specs
    }


def golden_check(instance: Instance, golden: Vectors) -> Done | Failed:
    """Run every golden vector; the outputs must lie within their tolerance."""
    worst, times = 0.0, []
    failures: list[str] = []
    for inputs, wanted in zip(golden.inputs, golden.outputs, strict=True):
        start = time.perf_counter()
        try:
            got = instance.run(inputs)
            instance.judge(got)
        except RuntimeFailure as error:
            return Failed("golden_failed", str(error))
        times.append((time.perf_counter() - start) * 1e3)
        for name, want in wanted.items():
            error_now, fault = _compared(name, want, got.get(name), golden.tolerance.get(name))
            worst = max(worst, error_now)
            failures += [fault] if fault else []
    measured = {"max_abs_error": worst, "p95_ms": _p95(times), "samples": float(len(times))}
    if failures:
        return Failed("golden_mismatch", f"{len(failures)} outputs differ, first {failures[0]}", measured)
    return Done(measured)


def _compared(name: str, want: Array, got: Array | None, tolerance: Tolerance | None) -> tuple[float, str]:
    """Return the largest absolute error, and what is wrong with the output, "" when nothing is."""
    if got is None or got.shape != want.shape:
        shape = "nothing" if got is None else f"shape {list(got.shape)}"
        return 0.0, f"{name}: expected shape {list(want.shape)}, got {shape}"
    a, b = want.astype(np.float64), got.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    error = np.where(same, 0.0, np.abs(np.where(same, 0.0, a - b)))
    allowed = tolerance.atol + tolerance.rtol * np.abs(a) if tolerance else np.zeros_like(a)
    finite = np.where(np.isfinite(error), error, np.finfo(np.float64).max)
    largest = float(finite.max(initial=0.0))
    if bool(np.all(error <= allowed)):
        return largest, ""
    return largest, f"{name}: largest error {largest:.6g}, allowed {float(allowed.max(initial=0.0)):.6g}"


def shadow(
    engine: Engine, candidate: Instance, seconds: float, cancelled: Callable[[], bool]
) -> Done | Failed:
    """Run the candidate beside the active bundle on live requests, for a time or until enough agree."""
    model = candidate.description.model
    slot = engine.slot(model)
    if slot.active is None:
        return Done({"compared": 0.0})
    tap = Tap()
    engine.place(model, Slot(active=slot.active, tap=tap))
    try:
        agreed, compared, fault = _compare(tap, candidate, time.monotonic() + seconds, cancelled)
    finally:
        engine.place(model, Slot(active=engine.slot(model).active))
    if fault:
        return Failed("shadow_failed", fault, {"compared": float(compared)})
    measured = {"compared": float(compared)}
    if compared:
        measured["agreement"] = agreed / compared
    if compared >= SHADOW_FEWEST and agreed / compared < AGREEMENT_FLOOR:
        detail = (
            f"expected the same label for {AGREEMENT_FLOOR:.0%} of live requests, got {agreed} of {compared}"
        )
        return Failed("shadow_disagreement", detail, measured)
    return Done(measured)


def _compare(
    tap: Tap, candidate: Instance, until: float, cancelled: Callable[[], bool]
) -> tuple[int, int, str]:
    """Return how many answers agreed, of how many, and what went wrong."""
    agreed = compared = 0
    while compared < SHADOW_ENOUGH and time.monotonic() < until and not cancelled():
        try:
            seen = tap.seen.get(timeout=0.05)
        except queue.Empty:
            continue
        if seen.judgement is None:
            continue
        try:
            labels = candidate.judge(candidate.run(seen.request.inputs)).labels
        except RuntimeFailure as error:
            return agreed, compared, str(error)
        compared += 1
        agreed += labels == seen.judgement.labels
    return agreed, compared, ""


def canary(
    engine: Engine,
    candidate: Instance,
    golden: Vectors,
    seconds: float,
    cancelled: Callable[[], bool],
) -> Done | Failed:
    """Let the candidate answer live requests for the health window, and watch it; probe it all the while."""
    model = candidate.description.model
    watch = Canary(candidate)
    engine.place(model, Slot(active=engine.slot(model).active, canary=watch))
    until = time.monotonic() + seconds
    probed: list[float] = []
    for inputs in _again(golden.inputs):
        start = time.perf_counter()
        try:
            candidate.run(inputs)
        except RuntimeFailure as error:
            watch.errors.append(str(error))
        probed.append((time.perf_counter() - start) * 1e3)
        if watch.errors or cancelled() or time.monotonic() >= until:
            break
        time.sleep(min(1.0 / _PROBES_PER_SECOND, max(0.0, until - time.monotonic())))
    return _verdict(watch, probed, candidate)


def _again(inputs: list[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    while True:
        yield from inputs


def _verdict(watch: Canary, probed: list[float], candidate: Instance) -> Done | Failed:
    served = [x * 1e3 for x in watch.latencies]
    times = served or probed
    p95 = _p95(times)
    measured = {"served": float(len(served)), "errors": float(len(watch.errors)), "p95_ms": p95}
    if watch.errors:
        return Failed("canary_errors", watch.errors[0], measured)
    allowed = SLOWER * candidate.typical_seconds * 1e3 + SLACK_MS
    taken = p95 if len(times) >= FEWEST_FOR_P95 else float(np.median(times))
    if taken > allowed:
        return Failed("canary_slow", f"expected at most {allowed:.3g} ms, got {taken:.3g}", measured)
    return Done(measured)


def _p95(values: list[float]) -> float:
    return float(np.quantile(values, 0.95)) if values else 0.0
