"""From the winner to the bundle: golden vectors, baseline, offload thresholds, warnings, files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from compiler.bundle import contents, data, golden, insight, layout, measurements
from compiler.candidates import Candidate, Scheme
from compiler.data import datasets, suitability
from compiler.data.datasets import Dataset
from compiler.errors import CompileError, ModelRefusedError, one_line
from compiler.measuring import parity
from compiler.measuring.evaluate import Kind, outputs
from compiler.measuring.sensitivity import Sensitivity, measure
from compiler.measuring.switches import Recipe
from compiler.placement.memory import MIB
from compiler.placement.summary import Placement
from compiler.ports import Job, Runner
from compiler.quantizing import activations
from compiler.requests import BundleFacts, Chosen, CompileRequest, CompileResult, Latencies, Sizes
from compiler.search import tradeoffs, verdicts
from compiler.search.trials import Trials
from compiler.sharing import digest
from compiler.stages import Inputs, Winner
from compiler.tensors import Arrays
from firmware_profiles.profile import Profile
from fleet.bundle.description import Accuracy, TensorSpec

_ALPHA: Final = 0.05
#: A float model that shrinks below this share of itself when stripped would flatter what is compiled.
NOTABLE: Final = 0.95
#: Calibration samples whose answers a device is given to know drift by.
BASELINE_SAMPLES: Final = 2048


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What asking about single nodes found; None where there is none to ask about."""

    found: Sensitivity | None


def package(
    request: CompileRequest,
    job: Job,
    trials: Trials,
    given: Inputs,
    winner: Winner,
) -> CompileResult:
    """Write the bundle, and what was measured beside it; return the whole result."""
    found = _finding(request, job, trials, given, winner)
    made = job.scratch / "bundle"
    written = contents.write(found, made)
    timing = _timing(trials, winner, job.profile, request.max_drop)
    measurements.write(found, timing, made / layout.MEASUREMENTS)
    layout.place(Path(request.out), made)
    chosen = found.candidate
    return CompileResult(
        model=request.name,
        target=job.profile.name,
        bundle=BundleFacts(path=request.out, digest=str(written)),
        chosen=Chosen(
            name=chosen.name,
            precision=chosen.precision,
            scheme=chosen.scheme.value,
            backend=chosen.backend,
            runtime=found.artifact.runtime,
        ),
        accuracy=found.accuracy,
        size_bytes=found.sizes,
        latency_ms=Latencies(original=trials.original.latency_ms, compiled=winner.measured.latency_ms),
        candidates=found.verdicts,
        placement=found.placement,
        parity=found.parity,
        sensitivity=found.sensitivity,
        warnings=(*found.warnings, *timing),
    )


def _finding(
    request: CompileRequest, job: Job, trials: Trials, given: Inputs, winner: Winner
) -> contents.Finding:
    """Return all that the bundle is made of."""
    chosen = winner.measured.candidate
    artifact, backend, profile = trials.artifact(chosen), trials.backend(chosen), job.profile
    known = given.calibration.take(datasets.spread(given.calibration, BASELINE_SAMPLES))
    known = trials.affordable(chosen, known)
    calibrated = outputs(trials.runner(chosen), known)
    specs = artifact.outputs or _observed(given.outputs, calibrated)
    offload = insight.offload(winner.outputs, trials.how, winner.report.labels)
    sensitive, doubts = _sensitivity(job, trials, chosen)
    return contents.Finding(
        request=request,
        profile=profile,
        candidate=chosen,
        source_digest=given.source_digest,
        calibration_digest=given.calibration.digest,
        evaluation_digest=given.evaluation_digest,
        artifact=artifact,
        inputs=artifact.inputs or given.inputs,
        outputs=specs,
        golden=_golden(known, specs, calibrated, backend.load_reference(artifact), chosen.precision),
        accuracy=_accuracy(winner),
        offload=offload,
        baseline=insight.baseline_of(calibrated, trials.how, offload),
        sizes=Sizes(original=given.source_size, compiled=artifact.size()),
        verdicts=verdicts.of(trials, winner.refused, chosen, request.max_drop),
        confirmed=(*(x.name for x in winner.refused), chosen.name),
        placement=fitting(backend.placement(artifact, job), profile.name),
        parity=parity.parity(winner.floats, winner.outputs, trials.how, backend.runs_in),
        sensitivity=sensitive,
        data=data.of(given),
        warnings=(*_warnings(trials, given, winner, request.max_drop), *doubts),
        tools=backend.versions(),
        firmware=backend.requires(artifact),
    )


def _timing(trials: Trials, winner: Winner, profile: Profile, max_drop: float) -> tuple[str, ...]:
    """Return the warnings that follow from measured times, and so may not stand in the bundle."""
    refused = {x.name for x in winner.refused}
    return (
        *verdicts.timing_warnings(winner.measured, trials.original, profile),
        *tradeoffs.slower_than(trials.measured, winner.measured, max_drop, refused),
    )


def fitting(found: Placement, target: str) -> Placement:
    """Return a placement that the target has the memory for.

    Raises:
        ModelRefusedError: it has not; says by how much.
    """
    x = found.memory
    if not x.fits:
        raise ModelRefusedError(
            f"model: expected at most {x.budget_bytes / MIB:,.0f} MiB, the memory of {target}; got "
            f"{(x.weights_bytes + x.activations_bytes) / MIB:,.1f} MiB of weights and activations: "
            f"{x.over_bytes / MIB:,.1f} MiB too many"
        )
    return found


def _sensitivity(job: Job, trials: Trials, chosen: Candidate) -> tuple[Sensitivity | None, list[str]]:
    """Return what each node loses by quantization, or a warning that this could not be measured.

    It is that of the chosen candidate's integers; where that has none, of what the target would prefer.
    """
    rules = job.profile.quantization
    if not (rules.weights and rules.activations):
        return None, []
    static = chosen.scheme is Scheme.STATIC
    wide = static and chosen.precision == "int16"
    recipe = Recipe(
        activations=rules.activations.replace("8", "16") if wide else rules.activations,
        symmetric=rules.symmetric,
        per_channel=chosen.per_channel if static else True,
    )
    try:
        model = activations.folded(job.source, job.scratch)
        parts = ("sensitivity", digest(model), str(job.calibration.digest), recipe, trials.how)
        found = job.sharing.facts(
            parts,
            lambda: _Asked(found=measure(model, job.calibration, recipe, trials.how, job.scratch)),
            _Asked,
        )
    except CompileError as error:
        return None, [f"the sensitivity of single nodes was not measured: {one_line(error)}"]
    return found.found, []


def _observed(declared: tuple[TensorSpec, ...], got: Arrays) -> tuple[TensorSpec, ...]:
    """Return the outputs as they are: a dynamic first dimension that is not 1 for one sample is no batch."""
    return tuple(
        msgspec.structs.replace(x, batched=x.batched and got[x.name].shape[1] == 1) for x in declared
    )


def _golden(
    known: Dataset,
    specs: tuple[TensorSpec, ...],
    calibrated: Arrays,
    reference: Runner,
    precision: str,
) -> golden.GoldenFiles:
    rows = np.array(golden.rows(len(known)))
    samples = known.take(rows)
    answers = {name: values[rows] for name, values in calibrated.items()}
    return golden.make(samples, specs, answers, outputs(reference, samples), precision)


def _accuracy(winner: Winner) -> Accuracy:
    found = winner.comparison
    return Accuracy(
        original=found.accuracy_float,
        compiled=found.accuracy,
        drop_points=found.pairs.drop_points if found.pairs else None,
        agreement=found.agreement,
        interval=found.interval(1.0 - _ALPHA / winner.looks),
        samples=found.samples,
    )


def _warnings(trials: Trials, given: Inputs, winner: Winner, max_drop: float) -> tuple[str, ...]:
    """Return the warnings that follow from the inputs alone, and so may stand in the bundle."""
    chosen = winner.measured.candidate
    found = [f"model: {x}" for x in given.changes] + given.missing + given.doubts
    found += suitability.unseen((given.selection.labels, given.report.labels), trials.classes)
    bare = trials.reference.size
    if bare < NOTABLE * given.source_size:
        found.append(
            f"{given.source_size - bare:,} bytes of the float model are documentation and recorded shapes; "
            f"without them it takes {bare:,}"
        )
    found += trials.notes(chosen)
    floats = {Scheme.FLOAT, Scheme.HALF}
    if chosen.scheme in floats and any(x.candidate.scheme not in floats for x in trials.measured):
        found.append("keep float: no quantized candidate keeps the accuracy budget and is smaller")
    if trials.untried:
        found.append(f"not tried, for want of time: {', '.join(x.name for x in trials.untried)}")
    refused = {x.name for x in winner.refused}
    found += tradeoffs.given_up(trials.measured, winner.measured, max_drop, refused)
    if chosen.left_float:
        found.append(f"left in float: {', '.join(chosen.left_float)}")
    if len(winner.report) < len(given.report):
        found.append(
            f"accuracy is that of {len(winner.report)} of the {len(given.report)} samples to report on: "
            f"more would take too long in what the model runs in here"
        )
    if given.report.labels is None:
        found.append("no labels: the budget bounds disagreement with the float model, not lost accuracy")
    if trials.how.kind is Kind.NUMBERS:
        found.append("no output has classes: judged by signal-to-noise ratio alone")
    if winner.looks > 1:
        found.append(f"passed over for losing more than the budget on the other half: {winner.looks - 1}")
    return tuple(found)
