"""Building and measuring candidates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from compiler import latency, search
from compiler.backends import Backend, Runner, Workshop
from compiler.candidates import FLOAT, Candidate, Scheme
from compiler.datasets import Dataset, spread
from compiler.errors import CompileError, OptionError
from compiler.evaluate import Answering, Kind, answering, check_finite, compare, outputs
from compiler.search import Measured
from compiler.tensors import Arrays

#: Is told stage, done, total (0: unknown) and detail.
Tell = Callable[[str, int, int, str], None]
#: Samples of the calibration data on which single nodes are judged.
TRIAL_SAMPLES: Final = 64


class Trials:
    """The candidates of one model: each is built once, run on the selection half, and timed."""

    def __init__(
        self,
        *,
        backend: Backend,
        workshop: Workshop,
        folder: Path,
        calibration: Dataset,
        selection: Dataset,
        max_drop: float,
        tell: Tell,
    ) -> None:
        """Load the float model, and run it once.

        Raises:
            CompileError: it does not run.
            ModelRefusedError: it gives what is no number.
        """
        self._backend: Final = backend
        self._workshop: Final = workshop
        self._folder: Final = folder
        self._calibration: Final = calibration
        self._selection: Final = selection
        self._max_drop: Final = max_drop
        self._tell: Final = tell
        self.measured: Final[list[Measured]] = []
        self.failed: Final[dict[Candidate, str]] = {}
        workshop.build(FLOAT, self.path(FLOAT))
        self.floats(calibration.take(spread(calibration, 1)))

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

    @property
    def classes(self) -> int:
        """How many classes an answer is one of; 0 where it is none of classes."""
        return self._floats[self.how.output].shape[-1] if self.how.kind is Kind.CLASSES else 0

    def path(self, candidate: Candidate) -> Path:
        """Return where a candidate's artifact is."""
        return self._folder / f"{candidate.name}.onnx"

    def runner(self, candidate: Candidate) -> Runner:
        """Return a candidate's artifact, loaded."""
        return self._backend.load(self.path(candidate))

    def floats(self, data: Dataset) -> Arrays:
        """Return the float model's outputs.

        Raises:
            ModelRefusedError: one is no finite number.
        """
        found = outputs(self.runner(FLOAT), data)
        check_finite(found)
        return found

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about what a candidate leaves in float."""
        return self._workshop.notes(candidate)

    def search(self, wanted: Callable[[Candidate], bool]) -> None:
        """Try the planned candidates that are wanted, and finer ones where no static one keeps the budget.

        Raises:
            OptionError: none is wanted.
        """
        planned = self._workshop.plan()
        plan = [x for x in planned if wanted(x)]
        if not plan:
            names = ", ".join(f"{x.name} ({x.precision})" for x in planned)
            raise OptionError(f"expected a precision or candidate of {names}; got none of them")
        self._tell("run the float model", 0, len(plan), f"{len(self._selection)} samples")
        self.measured.append(self._compared(FLOAT, self._floats))
        for done, candidate in enumerate(plan):
            self._tell("try candidates", done, len(plan), candidate.name)
            if candidate.scheme is not Scheme.FLOAT:
                self._try(candidate)
        self._refine(wanted)

    def time(self) -> None:
        """Measure the latencies of those that could win, and of float."""
        fit = search.eligible(self.measured, self._max_drop)
        runners = {x.candidate.name: self.runner(x.candidate) for x in fit}
        self._tell("measure latency", 0, 1, f"{len(runners)} candidates, interleaved")
        times = latency.interleaved(runners, self._selection.feed(0))
        self.measured[:] = [
            msgspec.structs.replace(x, latency_ms=times.get(x.candidate.name)) for x in self.measured
        ]

    def _try(self, candidate: Candidate) -> None:
        try:
            self._workshop.build(candidate, self.path(candidate))
            self.measured.append(self._compared(candidate, outputs(self.runner(candidate), self._selection)))
        except CompileError as error:
            self.failed[candidate] = str(error)

    def _compared(self, candidate: Candidate, got: Arrays) -> Measured:
        comparison = compare(self._floats, got, self.how, self._selection.labels)
        size = self.path(candidate).stat().st_size
        return Measured(candidate=candidate, size=size, selection=comparison)

    def _refine(self, wanted: Callable[[Candidate], bool]) -> None:
        static = [x for x in self.measured if x.candidate.scheme is Scheme.STATIC]
        if not static or any(x in static for x in search.eligible(self.measured, self._max_drop)):
            return
        best = max(static, key=lambda x: (x.selection.agreement, x.selection.snr)).candidate
        data = self._calibration.take(spread(self._calibration, TRIAL_SAMPLES))
        want = outputs(self.runner(FLOAT), data)

        def distance(artifact: Path) -> float:
            self._tell("find sensitive operators", 0, 0, best.name)
            return -compare(want, outputs(self._backend.load(artifact), data), self.how, None).snr

        for candidate in filter(wanted, self._workshop.refine(best, distance)):
            self._try(candidate)
