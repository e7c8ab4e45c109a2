"""What several targets need is made once, and found by everything that it follows from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import small_models
from compiler import sharing
from compiler.cache import Cache
from compiler.measuring.switches import Recipe
from compiler.sharing import Sharing
from compiler.tensors import Arrays


class Counting:
    def __init__(self) -> None:
        self.times = 0

    def arrays(self) -> Arrays:
        self.times += 1
        return {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.array(self.times)}

    def model(self) -> onnx.ModelProto:
        self.times += 1
        return small_models.graph()


def test_arrays_are_made_once_per_question(tmp_path: Path) -> None:
    made = Counting()
    first = Sharing(Cache(tmp_path)).arrays(("x", 1), made.arrays)
    second = Sharing(Cache(tmp_path)).arrays(("x", 1), made.arrays)
    assert made.times == 1
    assert list(first) == list(second) == ["a/b", "c"]
    np.testing.assert_array_equal(first["a/b"], second["a/b"])
    Sharing(Cache(tmp_path)).arrays(("x", 2), made.arrays)
    assert made.times == 2


def test_a_model_is_made_once_and_is_the_same_with_and_without_a_cache(tmp_path: Path) -> None:
    made = Counting()
    kept = [Sharing(Cache(tmp_path)).model(("m",), made.model) for _ in range(2)]
    assert made.times == 1
    alone = Sharing().model(("m",), made.model)
    assert {sharing.digest(x) for x in (*kept, alone)} == {sharing.digest(small_models.graph())}


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """What each node loses by quantization is asked once for all targets with the same numbers."""
    made = Counting()

    def record() -> Recipe:
        made.times += 1
        return Recipe(activations="uint8", per_channel=False)

    kept = [Sharing(Cache(tmp_path)).facts(("r",), record, Recipe) for _ in range(2)]
    assert made.times == 1
    assert kept == [Recipe(activations="uint8", per_channel=False)] * 2


def test_without_a_cache_everything_is_made_anew() -> None:
    made = Counting()
    nothing = Sharing()
    assert int(nothing.arrays(("x",), made.arrays)["c"]) == 1
    assert int(nothing.arrays(("x",), made.arrays)["c"]) == 2
