"""Each ONNX operator that is converted for Core ML gives what ONNX Runtime gives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compiler.mil import package
from compiler.mil.convert import convert
from compiler.mil.evaluate import Evaluator
from compiler.mil.registry import table
from compiler.tensors import Arrays
from mil_cases import CASES, Case, joined


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Arrays]:
    """Return ONNX Runtime's outputs, and those of saved packages evaluated by other code than wrote them."""
    want: Arrays = {}
    got: Arrays = {}
    for opset in sorted({x.opset for x in CASES}):
        cases = [x for x in CASES if x.opset == opset]
        model = joined(cases)
        feed = {name: x for case in cases for name, x in case.feed().items()}
        session = onnxruntime.InferenceSession(model.SerializeToString())
        want |= dict(zip([x.name for x in session.get_outputs()], session.run(None, feed), strict=True))
        folder: Path = tmp_path_factory.mktemp("package")
        package.write(convert(model, half=False), folder)
        got |= Evaluator(folder, half=False).run(feed)
    return want, got


@pytest.mark.parametrize("case", CASES, ids=[x.label for x in CASES])
def test_operator_gives_what_onnx_runtime_gives(case: Case, answers: tuple[Arrays, Arrays]) -> None:
    want, got = answers
    for name in case.results():
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        assert np.allclose(got[name], want[name], rtol=2e-5, atol=2e-5, equal_nan=True)


def test_every_operator_has_a_case() -> None:
    assert set(table()) == {x.kind for x in CASES}


def test_the_page_on_apple_names_every_operator() -> None:
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "apple.md").read_text()
    listed = next(x for x in page.splitlines() if x.startswith("`Abs`"))
    assert set(re.findall(r"`(\w+)`", listed)) == set(table())
