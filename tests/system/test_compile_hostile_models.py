"""Hostile and broken models: each is refused within seconds, in one line, and under the memory limit."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import small_models
from compiler import limits
from processes import KEDGE

#: Of processor time: on an idle machine that is the time it takes.
SECONDS = 10.0
MEMORY_KIB = 1024 * 1024
#: Runs a command, and prints how it ended, its processor time and the most memory of its processes.
MEASURE = """
import json, os, resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


class Outcome(NamedTuple):
    """How a compilation ended."""

    code: int
    message: str
    seconds: float
    memory_kib: int


def compile_(model: Path, data: small_models.SmallModel) -> Outcome:
    """Compile in a process of its own; return how it ended and what it took, its worker included.

    The process between is small: what a process takes counts from before its own program was loaded, when
    it was still a copy of whoever started it.
    """
    log = model.parent / "stderr.txt"
    with log.open("wb") as stderr:
        done = subprocess.run(
            [
                *(sys.executable, "-c", MEASURE, KEDGE, "compile", str(model), "--target", "laptop-x86"),
                *("--calibration", str(data.calibration), "--evaluation", str(data.evaluation)),
                *("--out", str(model.parent / "out.bundle")),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=True,
        )
    code, seconds, memory_kib = json.loads(done.stdout)
    return Outcome(code, log.read_text().strip(), seconds, memory_kib)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> small_models.SmallModel:
    """Return a good model and its data."""
    return small_models.write(tmp_path_factory.mktemp("good"))


def refused(model: Path, data: small_models.SmallModel, *words: str) -> None:
    """Check that the model is refused as it should be."""
    outcome = compile_(model, data)
    assert outcome.code == 2, outcome
    assert outcome.message.startswith("error: "), outcome.message
    assert "\n" not in outcome.message
    for word in words:
        assert word in outcome.message
    assert outcome.seconds < SECONDS
    assert outcome.memory_kib < MEMORY_KIB
    assert not (model.parent / "out.bundle").exists()


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Write a good model with one thing changed."""
    model = small_models.graph()
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def external(model: onnx.ModelProto, location: str, offset: int = 0) -> None:
    """Say that the dense layer's weights lie in another file."""
    weights = model.graph.initializer[1]
    length = len(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        weights.external_data.add(key=key, value=value)


def test_an_empty_file(tmp_path: Path, data: small_models.SmallModel) -> None:
    """A download broke off before the first byte; `onnx.load` takes such a file for a model."""
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    refused(model, data, "got 0 bytes")


def test_a_missing_file(tmp_path: Path, data: small_models.SmallModel) -> None:
    refused(tmp_path / "none.onnx", data, "none.onnx")


def test_a_truncated_file(tmp_path: Path, data: small_models.SmallModel) -> None:
    """A disk was full: half the model is there."""
    model = tmp_path / "m.onnx"
    whole = data.model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    refused(model, data, "expected an ONNX model")


def test_a_pickle(tmp_path: Path, data: small_models.SmallModel) -> None:
    """A PyTorch checkpoint was renamed; opening a pickle would run what it says."""
    model = tmp_path / "m.onnx"
    model.write_bytes(pickle.dumps({"weights": [1.0]}))
    refused(model, data, "pickle")


def test_a_git_lfs_pointer(tmp_path: Path, data: small_models.SmallModel) -> None:
    """The repository was cloned without Git LFS: the file is a note of where the model is."""
    model = tmp_path / "m.onnx"
    model.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(model, data, "git lfs pull")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_the_folder(
    tmp_path: Path, data: small_models.SmallModel, location: str
) -> None:
    """A model asks for a file of the machine that compiles it, to carry it out in a bundle."""
    model = changed(tmp_path / "m.onnx", lambda m: external(m, location))
    refused(model, data, "in the model's folder")


def test_external_data_behind_a_link(tmp_path: Path, data: small_models.SmallModel) -> None:
    """The same, with a symbolic link that came in the archive."""
    (tmp_path / "weights.bin").symlink_to("/etc/hostname")
    model = changed(tmp_path / "m.onnx", lambda m: external(m, "weights.bin"))
    refused(model, data, "in the model's folder")


def test_external_data_past_the_end(tmp_path: Path, data: small_models.SmallModel) -> None:
    """The weights' file is shorter than the model says; `onnx.checker` does not look."""
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100)
    model = changed(tmp_path / "m.onnx", lambda m: external(m, "weights.bin", 50))
    refused(model, data, "expected", "of 100")


def test_a_tensor_bomb_in_the_weights(tmp_path: Path, data: small_models.SmallModel) -> None:
    """A weight of a few bytes claims to be of 10^15 elements."""

    def claim(model: onnx.ModelProto) -> None:
        model.graph.initializer[1].dims[:] = [10**8, 10**7]

    refused(changed(tmp_path / "m.onnx", claim), data, "weights: expected at most")


def bomb(model: onnx.ModelProto) -> None:
    """Make the graph ask for 160 GB."""
    shape = numpy_helper.from_array(np.array([200_000, 200_000], np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
    model.graph.output.append(helper.make_tensor_value_info("huge", TensorProto.FLOAT, [None, None]))


def test_a_tensor_bomb_in_the_graph(tmp_path: Path, data: small_models.SmallModel) -> None:
    """Forty bytes of shape make 160 GB; `onnx.checker` finds nothing wrong with it."""
    refused(changed(tmp_path / "m.onnx", bomb), data, "expected at most")


def widened(model: onnx.ModelProto, name: str, size: int) -> None:
    """Spread one number over a tensor of so many, and take its sum."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, size], np.int64), f"{name}_shape"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["scores"], [f"{name}_one"], axes=[1]),
            helper.make_node("Expand", [f"{name}_one", f"{name}_shape"], [name]),
        ]
    )


def summed(model: onnx.ModelProto, names: list[str]) -> None:
    """Let the graph give what all of these add up to."""
    model.graph.node.append(helper.make_node("Sum", names, ["all"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["all"], ["total"]))
    model.graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, [None, None]))


def test_a_valid_model_that_asks_for_gigabytes(tmp_path: Path, data: small_models.SmallModel) -> None:
    """Nothing is wrong with it but two tensors of 2 GB in its middle: it is refused before anything runs."""

    def widen(model: onnx.ModelProto) -> None:
        widened(model, "wide", 500_000_000)
        summed(model, ["wide"])

    refused(
        changed(tmp_path / "m.onnx", widen), data, "'wide'", "of intermediate tensors at once", "got 4000"
    )


def test_many_tensors_of_modest_size_at_once(tmp_path: Path, data: small_models.SmallModel) -> None:
    """Each of forty takes 40 MB, which is nothing; all of them are alive until they are added up."""

    def widen(model: onnx.ModelProto) -> None:
        for i in range(40):
            widened(model, f"wide{i}", 10_000_000)
        summed(model, [f"wide{i}" for i in range(40)])

    refused(changed(tmp_path / "m.onnx", widen), data, "of intermediate tensors at once", "got 164")


def test_a_convolution_that_blows_up_its_picture(tmp_path: Path, data: small_models.SmallModel) -> None:
    """Two attributes of a transposed convolution make 8 by 8 pixels to 3 GB."""

    def blow_up(model: onnx.ModelProto) -> None:
        for name, kernel in (("k1", np.ones((12, 64, 4, 4))), ("k2", np.ones((64, 64, 4, 4)))):
            model.graph.initializer.append(numpy_helper.from_array(kernel.astype(np.float32), name))
        model.graph.node.extend(
            [
                helper.make_node("ConvTranspose", ["positive", "k1"], ["large"], strides=[64, 64]),
                helper.make_node("ConvTranspose", ["large", "k2"], ["huge"], strides=[8, 8]),
                helper.make_node("GlobalAveragePool", ["huge"], ["pooled"]),
            ]
        )
        model.graph.output.append(
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [None, 64, 1, 1])
        )

    refused(changed(tmp_path / "m.onnx", blow_up), data, "'huge'", "of intermediate tensors at once")


def test_a_tensor_bomb_that_shape_inference_cannot_see(tmp_path: Path, data: small_models.SmallModel) -> None:
    """The shape is computed from the input, so only the memory limit can stop it."""

    def hide(model: onnx.ModelProto) -> None:
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.array([10**11], np.int64), "factor"),
                numpy_helper.from_array(np.array([1], np.int64), "one_number"),
            ]
        )
        model.graph.node.extend(
            [
                helper.make_node("Abs", ["picture"], ["absolute"]),
                helper.make_node("ReduceMax", ["absolute"], ["peak"], keepdims=0),
                helper.make_node("Ceil", ["peak"], ["peak_up"]),
                helper.make_node("Cast", ["peak_up"], ["count"], to=TensorProto.INT64),
                helper.make_node("Reshape", ["count", "one_number"], ["counts"]),
                helper.make_node("Mul", ["counts", "factor"], ["counts_huge"]),
                helper.make_node("ConstantOfShape", ["counts_huge"], ["huge"]),
                helper.make_node("ReduceMax", ["huge"], ["largest"]),
            ]
        )
        model.graph.output.append(helper.make_tensor_value_info("largest", TensorProto.FLOAT, [None]))

    refused(changed(tmp_path / "m.onnx", hide), data, "the model does not run")


def test_an_unknown_operator(tmp_path: Path, data: small_models.SmallModel) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type = "Frobnicate"

    refused(changed(tmp_path / "m.onnx", rename), data, "Frobnicate")


def test_an_unknown_operator_domain(tmp_path: Path, data: small_models.SmallModel) -> None:
    """The model needs a shared library of its author's."""

    def move(model: onnx.ModelProto) -> None:
        model.graph.node[1].domain = "com.example.custom"
        model.opset_import.append(helper.make_opsetid("com.example.custom", 1))

    refused(changed(tmp_path / "m.onnx", move), data, "com.example.custom")


def test_an_operator_set_of_the_future(tmp_path: Path, data: small_models.SmallModel) -> None:
    def raise_(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 99

    refused(changed(tmp_path / "m.onnx", raise_), data, "99")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, data: small_models.SmallModel, bad: float) -> None:
    """Training diverged; the model still loads, and answers the same to everything."""

    def spoil(model: onnx.ModelProto) -> None:
        weights = numpy_helper.to_array(model.graph.initializer[1]).copy()
        weights[0, 0] = bad
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "weights"))

    refused(changed(tmp_path / "m.onnx", spoil), data, "finite")


def test_a_deeply_nested_graph(tmp_path: Path, data: small_models.SmallModel) -> None:
    """Each level of nested If doubles the loading time: a file of a few KB kept ONNX Runtime for a minute."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["scores"], ["level0"])],
        "level0",
        [],
        [helper.make_tensor_value_info("level0", TensorProto.FLOAT, None)],
    )
    for level in range(1, 18):
        name = f"level{level}"
        node = helper.make_node("If", ["yes"], [name], then_branch=inner, else_branch=inner)
        inner = helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )
        if level > 8:
            # Both branches double the file: go on with one.
            node.attribute.pop()
            node.attribute.append(helper.make_attribute("else_branch", small_branch(level)))

    def nest(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        model.graph.node.append(
            helper.make_node("If", ["yes"], ["deep"], then_branch=inner, else_branch=small_branch(99))
        )
        model.graph.output.append(helper.make_tensor_value_info("deep", TensorProto.FLOAT, None))

    refused(changed(tmp_path / "m.onnx", nest), data, "levels of subgraphs")


def small_branch(level: int) -> onnx.GraphProto:
    """Return a branch that passes the scores on."""
    name = f"other{level}"
    return helper.make_graph(
        [helper.make_node("Identity", ["scores"], [name])],
        name,
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
    )


def test_a_loop_without_end(tmp_path: Path, data: small_models.SmallModel) -> None:
    """A valid graph that counts to 10^18: only the time limit can stop it."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "one"], ["count_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count_next", TensorProto.FLOAT, []),
        ],
    )

    def loop(model: onnx.ModelProto) -> None:
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(10**18, np.int64), "times"),
                numpy_helper.from_array(np.array(True), "yes"),
                numpy_helper.from_array(np.array(1.0, np.float32), "one"),
            ]
        )
        model.graph.node.append(helper.make_node("Loop", ["times", "yes", "one"], ["counted"], body=body))
        model.graph.output.append(helper.make_tensor_value_info("counted", TensorProto.FLOAT, []))

    outcome = compile_(changed(tmp_path / "m.onnx", loop), data)
    assert outcome.code == 2, outcome
    assert "takes too much to read" in outcome.message
    assert outcome.seconds < SECONDS


def test_a_function_that_calls_itself(tmp_path: Path, data: small_models.SmallModel) -> None:
    def recurse(model: onnx.ModelProto) -> None:
        call = helper.make_node("again", ["x"], ["y"], domain="evil")
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
        model.functions.append(helper.make_function("evil", "again", ["x"], ["y"], [call], opsets))
        model.opset_import.append(opsets[1])
        model.graph.node.append(helper.make_node("again", ["picture"], ["never"], domain="evil"))

    refused(changed(tmp_path / "m.onnx", recurse), data, "local functions", "recursive")


@pytest.mark.parametrize("location", ["a" * 5000, "a\0b", "."])
def test_external_data_under_a_name_that_no_file_has(
    tmp_path: Path, data: small_models.SmallModel, location: str
) -> None:
    def point(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    refused(changed(tmp_path / "m.onnx", point), data, "external data")


def test_a_name_of_megabytes(tmp_path: Path, data: small_models.SmallModel) -> None:
    """It kept the tools busy for a minute and took 5 GiB, as each step copies names."""

    def name(model: onnx.ModelProto) -> None:
        model.graph.node[0].name = "A" * 20_000_000

    refused(changed(tmp_path / "m.onnx", name), data, "names of at most")


@pytest.mark.parametrize("what", ["input", "weight"])
def test_a_tensor_of_a_hundred_thousand_dimensions(
    tmp_path: Path, data: small_models.SmallModel, what: str
) -> None:
    def stretch(model: onnx.ModelProto) -> None:
        if what == "weight":
            model.graph.initializer[0].dims.extend([2**62] * 100_000)
            return
        dimensions = model.graph.input[0].type.tensor_type.shape.dim
        dimensions.extend([dimensions[0]] * 100_000)

    refused(changed(tmp_path / "m.onnx", stretch), data, "at most 32 dimensions")


def test_an_operator_set_imported_a_million_times(tmp_path: Path, data: small_models.SmallModel) -> None:
    def repeat(model: onnx.ModelProto) -> None:
        model.opset_import.extend([model.opset_import[0]] * 1_000_000)

    refused(changed(tmp_path / "m.onnx", repeat), data, "each domain once")


def test_answers_that_are_no_numbers(tmp_path: Path, data: small_models.SmallModel) -> None:
    """A constant can hide from the check of the weights; what the model answers cannot."""

    def poison(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Constant", [], ["bad"], value_floats=[float("nan")] * 2))
        model.graph.output.append(helper.make_tensor_value_info("bad", TensorProto.FLOAT, [2]))

    refused(changed(tmp_path / "m.onnx", poison), data, "'bad'", "finite numbers")


def test_a_large_neighbour_buys_a_small_model_nothing(tmp_path: Path) -> None:
    """Memory and time grow with a model's external data, not with what else lies in the folder."""
    model = small_models.write(tmp_path).model
    alone = limits.for_import(model)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(limits.GIB)
    assert limits.for_import(model) == alone
    with model.open("ab") as file:
        file.write(b"location weights.bin")
    assert limits.for_import(model).memory_bytes > 2 * alone.memory_bytes
