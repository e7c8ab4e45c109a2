"""One compilation, from the files to the bundle: guard, normalise, search, confirm, package.

It runs in the worker process (`compiler.worker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import onnx

from compiler import backends, limits, packaging
from compiler.beside import Tell
from compiler.bundle import layout
from compiler.cache import Cache
from compiler.candidates import FLOAT, Candidate
from compiler.data import datasets, suitability
from compiler.data.datasets import Dataset
from compiler.errors import REASON, CompileError, ModelRefusedError, OptionError, one_line
from compiler.measuring.evaluate import check_finite, compare, outputs, snr
from compiler.models import guard, normalise
from compiler.onnx_session import Session
from compiler.ports import Backend, Job
from compiler.requests import CompileRequest, CompileResult
from compiler.search import rules, verdicts
from compiler.search.patience import Patience
from compiler.search.rules import Measured
from compiler.search.trials import Original, Shop, Trials
from compiler.sharing import Sharing
from compiler.stages import Inputs, Winner
from firmware_profiles import registry
from firmware_profiles.profile import Profile

READ: Final = "read the model"
#: Two runs of the same sums in another order are nearer than this, in dB.
SAME_DB: Final = 60.0


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
    trials, given, job = _prepare(request, profile, Path(request.scratch), tell)
    trials.search(lambda x: _wanted(x, request), request.candidate or request.precision)
    _check_classes(trials, request)
    trials.time()
    winner = _confirm(trials, given.report, request, profile, tell)
    tell("package", 0, 1, winner.measured.candidate.name)
    return packaging.package(request, job, trials, given, winner)


def _prepare(
    request: CompileRequest, profile: Profile, scratch: Path, tell: Tell
) -> tuple[Trials, Inputs, Job]:
    """Read everything and run the float model once, under the tight limits for unvouched files.

    Then, under those that the person set, let the tool-chains see it.
    """
    tell(READ, 0, 1, Path(request.model).name)
    tools, missing = backends.of(profile)
    limits.apply(limits.for_import(Path(request.model), request.calibration, request.evaluation))
    given, job, original = _read(request, profile, scratch, missing)
    limits.apply(request.limits)
    tell("prepare", 0, 1, profile.name)
    trials = Trials(
        shops=_shops(tools, job, given.missing),
        original=Original(path=job.source, session=original),
        folder=_made(scratch / "candidates"),
        calibration=given.calibration,
        selection=given.selection,
        max_drop=request.max_drop,
        patience=Patience(
            request.time_budget_s, request.crashed, frozenset(request.untried), at_once=request.at_once
        ),
        tell=tell,
    )
    return trials, given, job


def _read(
    request: CompileRequest, profile: Profile, scratch: Path, missing: list[str]
) -> tuple[Inputs, Job, Session]:
    """Read model and data, and run the float model once."""
    source = Path(request.model)
    read = guard.read(source)
    given_model = _old(read.model, scratch)
    model, changes = normalise.normalise(read.model)
    inputs, declared = normalise.tensors(model)
    calibration = datasets.load(datasets.named("calibration", request.calibration, inputs), inputs)
    evaluation = datasets.load(datasets.named("evaluation", request.evaluation, inputs), inputs)
    doubts = suitability.check(calibration, evaluation)
    selection, report = datasets.halves(evaluation)
    job = Job(
        model=model,
        source=scratch / "source.onnx",
        calibration=calibration,
        profile=profile,
        scratch=scratch,
        limits=request.limits,
        sharing=Sharing(Cache(Path(request.cache)) if request.cache else None),
    )
    onnx.save(model, job.source)
    original = _running(job.source, calibration, source.name)
    if given_model:
        _check_raised(given_model, original, calibration, source.name)
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
        doubts=doubts,
        missing=missing,
    )
    return given, job, original


def _running(model: Path, data: Dataset, name: str) -> Session:
    """Return the float model, loaded, after it ran once and gave numbers."""
    try:
        session = Session(model)
        check_finite(outputs(session, data.take(datasets.spread(data, 1))))
    except CompileError as error:
        raise ModelRefusedError(f"{name}: the model does not run: {error}") from error
    return session


def _old(model: onnx.ModelProto, scratch: Path) -> Path | None:
    """Keep a model of an old operator set as it was given, to compare with."""
    if normalise.opset(model) >= normalise.OLDEST_OPSET:
        return None
    path = scratch / "given.onnx"
    onnx.save(model, path)
    return path


def _check_raised(given: Path, raised: Session, data: Dataset, name: str) -> None:
    """Check that the model answers as before its operator set was raised: the converter may err silently.

    Raises:
        ModelRefusedError: names the output.
    """
    sample = data.take(datasets.spread(data, 1))
    try:
        want, got = outputs(Session(given), sample), outputs(raised, sample)
    except CompileError as error:
        raise ModelRefusedError(f"{name}: the model does not run: {error}") from error
    for output, values in want.items():
        noise = snr(values, got[output])
        if noise < SAME_DB:
            raise ModelRefusedError(
                f"{name}: output {output!r}: expected the same answers after its operator set was raised; "
                f"got a signal-to-noise ratio of {noise:.0f} dB: export it with operator set 13 or newer"
            )


def _shops(tools: Mapping[str, Backend], job: Job, missing: list[str]) -> dict[str, Shop]:
    """Open the tool-chains; one beside the target's first that cannot take the model is noted.

    Raises:
        CompileError: the first cannot.
    """
    first, *others = tools
    found = {first: _shop(first, tools[first], job)}
    for name in others:
        try:
            found[name] = _shop(name, tools[name], job)
        except CompileError as error:  # noqa: PERF203 - each on its own
            missing.append(f"{name} candidates were not tried: {one_line(error, REASON)}")
    return found


def _shop(name: str, backend: Backend, job: Job) -> Shop:
    scratch = _made(job.scratch / name)
    return Shop(backend=backend, workshop=backend.open(msgspec.structs.replace(job, scratch=scratch)))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _check_classes(trials: Trials, request: CompileRequest) -> None:
    if request.labels and trials.classes not in {0, len(request.labels)}:
        raise OptionError(f"--classes: expected {trials.classes} names; got {len(request.labels)}")


def _wanted(candidate: Candidate, request: CompileRequest) -> bool:
    if request.candidate:
        return candidate.name == request.candidate
    return request.precision in {"", candidate.precision}


def _confirm(
    trials: Trials, report: Dataset, request: CompileRequest, profile: Profile, tell: Tell
) -> Winner:
    """Return the best candidate that keeps the budget on the other half too.

    Each further look at that half costs confidence, which the interval pays (Bonferroni).

    Raises:
        CompileError: what was asked for by name does not keep the budget.
    """
    ranked = _in_order(trials, request, profile)
    floats = trials.floats(report)
    refused: dict[Candidate, str] = {}
    for look, measured in enumerate(ranked, 1):
        tell("confirm", look - 1, len(ranked), measured.candidate.name)
        data = trials.affordable(measured.candidate, report)
        wanted = floats if data is report else trials.floats(data)
        try:
            got = outputs(trials.runner(measured.candidate), data)
        except CompileError as error:  # as in the search, the next one may do
            refused[measured.candidate] = one_line(error, REASON)
            continue
        comparison = compare(wanted, got, trials.how, data.labels)
        if comparison.keeps(request.max_drop):
            return Winner(
                measured=measured,
                report=data,
                comparison=comparison,
                looks=look,
                outputs=got,
                floats=wanted,
                refused=refused,
            )
        refused[measured.candidate] = f"{comparison.drop_points():+.2f} points on the other half"
    raise CompileError(_why_none(trials, request, refused))


def _why_none(trials: Trials, request: CompileRequest, refused: Mapping[Candidate, str]) -> str:
    """Return why no candidate may become the bundle."""
    if not trials.measured:
        reasons = "; ".join(dict.fromkeys(trials.failed.values()))
        return f"{request.target}: none of {len(trials.failed)} candidates can be built: {reasons[:400]}"
    asked = request.candidate or request.precision
    tried = verdicts.of(trials, refused, None, request.max_drop)
    what = ", ".join(
        f"{x.name} {x.status}" + (f" ({x.reason})" if x.reason else "") for x in tried if x.name != FLOAT.name
    )
    return (
        f"{request.target}: no {asked + ' ' if asked else ''}candidate keeps the budget of "
        f"{request.max_drop:g} points and is smaller than float: {what}"
    )


def _in_order(trials: Trials, request: CompileRequest, profile: Profile) -> list[Measured]:
    """Return the candidates to confirm, the best first."""
    if request.pinned:
        named = {x.candidate.name: x for x in trials.measured}
        return [named[x] for x in request.pinned if x in named]
    ranked = rules.ranking(
        trials.measured,
        trials.original,
        request.max_drop,
        precisions=profile.precisions,
        veto=not (request.candidate or request.precision),
    )
    return [x for x in ranked if _wanted(x.candidate, request)]
