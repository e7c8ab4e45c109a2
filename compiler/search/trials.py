"""Building and measuring candidates."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from compiler import beside
from compiler.artifacts import Artifact
from compiler.beside import Beside, Tell
from compiler.candidates import FLOAT, Candidate, Scheme
from compiler.data.datasets import Dataset, spread
from compiler.errors import REASON, CompileError, OptionError, one_line
from compiler.measuring import latency
from compiler.measuring.evaluate import Answering, Kind, answering, check_finite, compare, outputs
from compiler.onnx_session import Session
from compiler.ports import Backend, Runner, Workshop
from compiler.search import rules
from compiler.search.patience import Patience
from compiler.search.rules import Measured
from compiler.tensors import Arrays
from fleet.errors import UserError

logger = logging.getLogger(__name__)

#: Samples of the calibration data on which single nodes are judged.
TRIAL_SAMPLES: Final = 64


class Shop(msgspec.Struct, frozen=True, kw_only=True):
    """One tool-chain at work on the model."""

    backend: Backend
    workshop: Workshop


class Original(NamedTuple):
    """The float model: its file, and loaded in ONNX Runtime."""

    path: Path
    session: Session


class Trials:
    """The candidates of one model: each is built once, run on the selection half, and timed."""

    def __init__(
        self,
        *,
        shops: Mapping[str, Shop],
        original: Original,
        folder: Path,
        calibration: Dataset,
        selection: Dataset,
        max_drop: float,
        patience: Patience,
        tell: Tell,
    ) -> None:
        """Take what there is; nothing is built yet.

        Args:
            shops: the tool-chains by name.
            original: the float model.
            folder: where artifacts go.
            calibration: samples that ranges are found on.
            selection: the half of the evaluation data to choose on.
            max_drop: the budget in percentage points.
            patience: how long to try.
            tell: is told how far the work is.
        """
        self._shops: Final = shops
        self._source: Final = original.path
        self._folder: Final = folder
        self._calibration: Final = calibration
        self._selection: Final = selection
        self._max_drop: Final = max_drop
        self._patience: Final = patience
        self._tell: Final = tell
        self._artifacts: Final[dict[Candidate, Artifact]] = {}
        self.measured: Final[list[Measured]] = []
        self.failed: Final[dict[Candidate, str]] = {}
        self.crashed: Final[dict[Candidate, str]] = {}
        self.untried: Final[list[Candidate]] = []
        self._float: Final = original.session

    @functools.cached_property
    def _floats(self) -> Arrays:
        return self.floats(self._selection)

    @functools.cached_property
    def how(self) -> Answering:
        """Which output answers.

        Raises:
            DatasetError: there are labels, and no output gives classes.
        """
        return answering(self._floats, self._selection.labels)

    @functools.cached_property
    def reference(self) -> Measured:
        """The float model in ONNX Runtime, as the measure of all others; not timed."""
        comparison = compare(self._floats, self._floats, self.how, self._selection.labels)
        return Measured(candidate=FLOAT, size=self._source.stat().st_size, selection=comparison)

    @property
    def original(self) -> Measured:
        """The float model, timed once latencies were measured."""
        return msgspec.structs.replace(self.reference, latency_ms=self._float_ms)

    _float_ms: float | None = None

    @property
    def classes(self) -> int:
        """How many classes an answer is one of; 0 where it is none of classes."""
        return self._floats[self.how.output].shape[-1] if self.how.kind is Kind.CLASSES else 0

    def backend(self, candidate: Candidate) -> Backend:
        """Return the tool-chain that makes a candidate."""
        return self._shops[candidate.backend].backend

    def artifact(self, candidate: Candidate) -> Artifact:
        """Return a candidate's artifact, once it was built."""
        return self._artifacts[candidate]

    def affordable(self, candidate: Candidate, data: Dataset) -> Dataset:
        """Return as many of some samples as a candidate's artifact can be run on here, spread evenly."""
        limit = self.artifact(candidate).affordable
        return data.take(spread(data, limit)) if 0 < limit < len(data) else data

    def runner(self, candidate: Candidate) -> Runner:
        """Return a candidate's artifact, loaded."""
        return self.backend(candidate).load(self.artifact(candidate))

    def floats(self, data: Dataset) -> Arrays:
        """Return the float model's outputs.

        Raises:
            ModelRefusedError: one is no finite number.
        """
        found = outputs(self._float, data)
        check_finite(found)
        return found

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about what a candidate leaves in float."""
        return self._shops[candidate.backend].workshop.notes(candidate)

    def search(self, wanted: Callable[[Candidate], bool], asked: str = "") -> None:
        """Try the planned candidates that are wanted, and finer ones where no static one keeps the budget.

        Args:
            wanted: tells of each whether it is.
            asked: what the person calls them.

        Raises:
            OptionError: none is wanted.
        """
        planned = [x for name in self._shops for x in self._planned(name)]
        # Float goes first: from then on there is something to fall back on.
        plan = sorted(filter(wanted, planned), key=lambda x: x != FLOAT)
        if not plan:
            names = ", ".join(f"{x.name} ({x.precision})" for x in planned)
            raise OptionError(f"expected a precision or candidate of {names}; got {asked!r}")
        self._tell(
            "run the float model", 0, len(plan), f"{len(self._selection)} samples, {self.how.kind.value}"
        )
        if FLOAT in planned and FLOAT not in plan:
            plan.insert(0, FLOAT)  # where a target runs float, it is what the others are weighed against
        progress = Beside(self._tell, len(plan))

        def work(name: str) -> None:
            for candidate in [x for x in plan if x.backend == name]:
                progress.at(name, "try candidates", candidate.name, counts=True)
                self._try(candidate)
            self._refine(name, wanted, progress)
            progress.done(name)

        tasks = {name: functools.partial(work, name) for name in self._shops}
        beside.run(tasks, at_once=self._patience.at_once)
        self._put_in_order()

    def _put_in_order(self) -> None:
        """Order what was found by tool-chain, as threads end when they like."""
        place = {name: index for index, name in enumerate(self._shops)}
        self.measured.sort(key=lambda x: place[x.candidate.backend])
        self.untried.sort(key=lambda x: place[x.backend])
        for found in (self.failed, self.crashed):
            items = sorted(found.items(), key=lambda x: place[x[0].backend])
            found.clear()
            found.update(items)

    def time(self) -> None:
        """Measure the latencies of those that could win, and of float."""
        fit = [x for x in rules.eligible(self.measured, self._max_drop) if self.backend(x.candidate).timed]
        if not fit:
            return
        runners: dict[str, Runner] = {x.candidate.name: self.runner(x.candidate) for x in fit}
        runners[FLOAT.name] = self._float
        self._tell("measure latency", 0, 1, f"{len(runners)} candidates, interleaved")
        times = latency.interleaved(runners, self._selection.feed(0))
        self._float_ms = times[FLOAT.name]
        self.measured[:] = [
            msgspec.structs.replace(x, latency_ms=times.get(x.candidate.name)) for x in self.measured
        ]

    def _planned(self, name: str) -> Sequence[Candidate]:
        try:
            return self._shops[name].workshop.plan()
        except CompileError as error:
            if len(self._shops) == 1:
                raise
            self.failed[_finer(name)] = one_line(error, REASON)
            return []

    def _passed_over(self, candidate: Candidate) -> bool:
        """Return whether a candidate is not to be tried, and note why."""
        if candidate.name in self._patience.crashed:
            self.crashed[candidate] = self._patience.crashed[candidate.name]
        elif candidate.name in self._patience.untried or self._late():
            self.untried.append(candidate)
        else:
            return False
        return True

    def _late(self) -> bool:
        """Return whether time is up and there is something that keeps the budget."""
        return self._patience.over and bool(rules.eligible(self.measured, self._max_drop))

    def _try(self, candidate: Candidate) -> None:
        if self._passed_over(candidate):
            return
        folder = self._folder / candidate.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            artifact = self._shops[candidate.backend].workshop.build(candidate, folder)
            self._artifacts[candidate] = artifact
            got = outputs(_quick(artifact, self.backend(candidate)), self._selection)
            comparison = compare(self._floats, got, self.how, self._selection.labels)
            self.measured.append(Measured(candidate=candidate, size=artifact.size(), selection=comparison))
        except CompileError as error:
            self.failed[candidate] = one_line(error, REASON)
        except UserError:
            raise
        except Exception as error:  # tool-chains raise anything; the others may do
            logger.exception("%s", candidate.name)
            self.failed[candidate] = f"{type(error).__name__}: {one_line(error)}"

    def _refine(self, name: str, wanted: Callable[[Candidate], bool], progress: Beside) -> None:
        shop = self._shops[name]
        static = [
            x for x in self.measured if x.candidate.scheme is Scheme.STATIC and x.candidate.backend == name
        ]
        if not static or any(x.selection.keeps(self._max_drop) for x in static):
            return
        finer = _finer(name)
        if self._passed_over(finer):
            return
        best = max(static, key=lambda x: (x.selection.agreement, x.selection.snr)).candidate
        data = self._calibration.take(spread(self._calibration, TRIAL_SAMPLES))
        want = outputs(self._float, data)

        def distance(artifact: Artifact) -> float:
            if self._late():
                raise _OutOfTimeError
            progress.at(name, "find sensitive operators", finer.name)
            return -compare(want, outputs(_quick(artifact, shop.backend), data), self.how, None).snr

        try:
            found = shop.workshop.refine(best, distance)
        except _OutOfTimeError:
            self.untried.append(finer)
        except CompileError as error:
            self.failed[finer] = one_line(error, REASON)
        else:
            for candidate in filter(wanted, found):
                progress.at(name, "try candidates", candidate.name)
                self._try(candidate)


class _OutOfTimeError(CompileError):
    """There is no time to look for sensitive operators."""


def _finer(backend: str) -> Candidate:
    """Return what stands for candidates that are not known yet, as others have to be measured first."""
    return Candidate(name=f"{backend}-finer", precision="", scheme=Scheme.STATIC, backend=backend)


def _quick(artifact: Artifact, backend: Backend) -> Runner:
    """Return what answers for an artifact while candidates are compared."""
    return Session(artifact.twin) if artifact.twin else backend.load(artifact)
