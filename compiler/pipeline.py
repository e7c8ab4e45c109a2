"""One compilation, from the files to the bundle: guard, normalise, search, confirm, package.

It runs in the worker process (`compiler.worker`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from compiler import backends, datasets, guard, limits, normalise, packaging, search, verdicts
from compiler.backends import Backend
from compiler.bundle import layout
from compiler.candidates import FLOAT, Candidate
from compiler.datasets import Dataset
from compiler.errors import CompileError, ModelRefusedError, OptionError
from compiler.evaluate import compare, outputs
from compiler.requests import CompileRequest, CompileResult
from compiler.stages import Inputs, Winner
from compiler.trials import Tell, Trials
from firmware_profiles import registry
from firmware_profiles.profile import Profile

READ: Final = "read the model"


def run(request: CompileRequest, tell: Tell) -> CompileResult:
    """Compile a model.

    Args:
        request: what is asked.
        tell: is told stage, done, total and detail.

    Raises:
        KedgeError: it cannot be done; the message says why.
    """
    profile = registry.load(request.target)
    backends.require(profile)
    layout.check_free(Path(request.out))
    trials, given, backend = _prepare(request, profile, Path(request.scratch), tell)
    limits.apply(request.limits)
    trials.search(lambda x: _wanted(x, request))
    _check_classes(trials, request)
    trials.time()
    winner = _confirm(trials, given.report, request, tell)
    tell("package", 0, 1, winner.measured.candidate.name)
    return packaging.package(request, profile, backend, trials, given, winner)


def _prepare(
    request: CompileRequest, profile: Profile, scratch: Path, tell: Tell
) -> tuple[Trials, Inputs, Backend]:
    """Read everything and run the float model once, under the tight limits for unvouched files."""
    tell(READ, 0, 1, Path(request.model).name)
    source = Path(request.model)
    limits.apply(limits.for_import(source))
    read = guard.read(source)
    model, changes = normalise.normalise(read.model)
    inputs, declared = normalise.tensors(model)
    calibration = datasets.load(Path(request.calibration), inputs)
    evaluation = datasets.load(Path(request.evaluation), inputs)
    selection, report = datasets.halves(evaluation)
    backend = backends.load(profile)
    workshop = backend.open(model, calibration, profile, scratch)
    try:
        trials = Trials(
            backend=backend,
            workshop=workshop,
            folder=scratch,
            calibration=calibration,
            selection=selection,
            max_drop=request.max_drop,
            tell=tell,
        )
    except CompileError as error:
        raise ModelRefusedError(f"{source.name}: the model does not run: {error}") from error
    given = Inputs(
        source_digest=read.digest,
        source_size=read.size,
        evaluation_digest=evaluation.digest,
        inputs=inputs,
        outputs=declared,
        calibration=calibration,
        selection=selection,
        report=report,
        changes=changes,
    )
    return trials, given, backend


def _check_classes(trials: Trials, request: CompileRequest) -> None:
    if request.labels and trials.classes not in {0, len(request.labels)}:
        raise OptionError(f"--classes: expected {trials.classes} names; got {len(request.labels)}")


def _wanted(candidate: Candidate, request: CompileRequest) -> bool:
    if request.candidate:
        return candidate.name == request.candidate
    return request.precision in {"", candidate.precision}


def _confirm(trials: Trials, report: Dataset, request: CompileRequest, tell: Tell) -> Winner:
    """Return the best candidate that keeps the budget on the other half too.

    Each further look at that half costs confidence, which the interval pays (Bonferroni).

    Raises:
        CompileError: what was asked for by name does not keep the budget.
    """
    asked = request.candidate or request.precision
    ranked = [
        x
        for x in search.ranking(trials.measured, request.max_drop, veto=not asked)
        if _wanted(x.candidate, request)
    ]
    floats = trials.floats(report)
    refused: dict[Candidate, str] = {}
    for look, measured in enumerate(ranked, 1):
        tell("confirm", look - 1, len(ranked), measured.candidate.name)
        got = outputs(trials.runner(measured.candidate), report)
        comparison = compare(floats, got, trials.how, report.labels)
        if comparison.keeps(request.max_drop):
            return Winner(measured=measured, comparison=comparison, looks=look, outputs=got, refused=refused)
        refused[measured.candidate] = f"{comparison.drop_points():+.2f} points on the other half"
    tried = verdicts.of(trials.measured, trials.failed, refused, FLOAT, request.max_drop)
    what = ", ".join(f"{x.name} {x.status}" for x in tried if x.name != FLOAT.name)
    raise CompileError(
        f"no {asked} candidate keeps the budget of {request.max_drop:g} points "
        f"and is smaller than float: {what}"
    )
