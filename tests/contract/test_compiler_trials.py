"""What trying candidates asks of a tool-chain, and what it keeps of its answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import pytest

import small_models
from compiler import backends
from compiler.artifacts import Artifact
from compiler.candidates import FLOAT, Candidate, Scheme
from compiler.data import datasets
from compiler.errors import CompileError
from compiler.models import normalise
from compiler.onnx_session import Session
from compiler.search.patience import Patience
from compiler.search.trials import Original, Shop, Trials

STATIC = Candidate(name="static", precision="int8", scheme=Scheme.STATIC)


class Writer:
    """A workshop whose candidates are the float model, the static one with so many bytes more."""

    def __init__(self, model: Path, more: int) -> None:
        self._model = model
        self._more = more
        self.refined = False

    def plan(self) -> Sequence[Candidate]:
        return [FLOAT, STATIC]

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        del best, distance
        self.refined = True
        return []

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        path = folder / "model.onnx"
        shutil.copy(self._model, path)
        if candidate == STATIC:
            (folder / "more").write_bytes(bytes(self._more))
        return Artifact(folder=folder, main=path.name, kind="onnx", runtime="onnxruntime")

    def notes(self, candidate: Candidate) -> list[str]:
        del candidate
        return []


class Breaker(Writer):
    """A workshop whose tool names the file that it stumbles over."""

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        if candidate == STATIC:
            raise CompileError(f"the tool cannot read {folder / 'model.onnx'}")
        return super().build(candidate, folder)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Return a folder as a worker has one: directly among the temporary ones."""
    with tempfile.TemporaryDirectory(prefix="kedge-compile-") as folder:
        yield Path(folder)


def tried(scratch: Path, make: Callable[[Path], Writer]) -> tuple[Trials, Writer]:
    files = small_models.write(scratch)
    inputs, _ = normalise.tensors(onnx.load(files.model))
    workshop = make(files.model)
    (scratch / "candidates").mkdir()
    trials = Trials(
        shops={"onnxruntime": Shop(backend=backends.load("onnxruntime"), workshop=workshop)},
        original=Original(path=files.model, session=Session(files.model)),
        folder=scratch / "candidates",
        calibration=datasets.load(files.calibration, inputs),
        selection=datasets.load(files.evaluation, inputs),
        max_drop=0.5,
        patience=Patience(0.0, {}, frozenset()),
        tell=lambda *_: None,
    )
    trials.search(lambda _: True)
    return trials, workshop


def test_what_keeps_the_budget_is_not_refined_however_large_it_is(scratch: Path) -> None:
    """To leave more of it in float would make it larger still."""
    trials, workshop = tried(scratch, lambda model: Writer(model, 100_000))
    assert [x.candidate for x in trials.measured] == [FLOAT, STATIC]
    assert all(x.selection.keeps(0.5) for x in trials.measured)
    assert not workshop.refined


def test_a_reason_is_the_same_in_every_run(scratch: Path) -> None:
    """It stands in the bundle's report, whose digest must not depend on a folder that chance named."""
    trials, _ = tried(scratch, lambda model: Breaker(model, 0))
    assert trials.failed == {STATIC: "the tool cannot read model.onnx"}
