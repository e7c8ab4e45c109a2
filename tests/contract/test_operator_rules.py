"""Every profile's operator rules speak of operators and types that exist, and decide about any graph."""

from __future__ import annotations

import functools

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

import small_models
from compiler.placement import onnx_graph
from compiler.placement.facts import ELEMENT_BYTES
from compiler.placement.rules import ALL
from compiler.placement.summary import by_rules
from firmware_profiles import checks, registry
from firmware_profiles.errors import ProfileError
from firmware_profiles.profile import Profile

#: What edgetpu_compiler makes of all that it maps.
COMPILED = "edgetpu-custom-op"
PROFILES = [registry.load(name) for name in registry.names()]


@functools.cache
def known(runtime: str) -> frozenset[str]:
    """Return the operators of a runtime's artifacts, or none where no library here lists them."""
    if runtime in {"onnxruntime", "tensorrt", "qnn"}:
        return frozenset(x.name for x in get_all_operator_schema())  # with ONNX Runtime's own
    if runtime == "tflite":
        schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is missing")
        return frozenset(vars(schema.BuiltinOperator)) | {COMPILED}
    return frozenset()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda x: x.name)
def test_rules_name_operators_that_exist(profile: Profile) -> None:
    """A misspelt operator would match nothing, and the rule would never be heard."""
    there = known(profile.runtime)
    named = {x for rule in profile.operators for x in rule.operators} - {ALL}
    assert not there or named <= there, sorted(named - there)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda x: x.name)
def test_checks_name_types_that_exist(profile: Profile) -> None:
    types = {
        x
        for rule in profile.operators
        for check in rule.checks
        if isinstance(check, checks.DataType)
        for x in check.one_of
    }
    assert types <= set(ELEMENT_BYTES)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda x: x.name)
def test_the_rules_decide_about_every_node(profile: Profile) -> None:
    graph = onnx_graph.read(small_models.graph())
    for unit in {x.unit for x in profile.operators} | {""}:
        found = by_rules(profile, graph, unit=unit)
        assert [x.name for x in found.nodes] == ["conv", "relu", "flatten", "dense"]
        assert sum(found.units().values()) == 4
        assert all(x.rule for x in found.nodes)
    assert (by_rules(profile, graph).accelerated_macs is None) == (profile.accelerator.kind == "cpu")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'checks = [{ check = "ranks", most = 4 }]', "Invalid value 'ranks'"),
        (b'checks = [{ check = "rank", most = 4, least_ = 1 }]', "unknown field `least_`"),
        (b'checks = [{ check = "rank", most = "4" }]', "Expected `int`"),
        (b'checks = [{ check = "data-type", one_of = ["INT8"], of = "everything" }]', "Invalid enum value"),
    ],
)
def test_a_misspelt_check_is_refused_with_its_file(line: bytes, complaint: str) -> None:
    """It would silently let everything pass."""
    rule = b'\n[[operators]]\noperators = ["Conv"]\nsupport = "limited"\ncondition = "c"\nsource = "s"\n'
    text = b'name = "acme"\n' + b"\n".join(_base()) + rule + line + b"\n"
    with pytest.raises(ProfileError, match=rf"acme\.toml.*{complaint}"):
        registry.parse(text, "acme.toml")


def _base() -> list[bytes]:
    return [
        b'family = "cpu"',
        b'description = "Acme"',
        b'architecture = "aarch64"',
        b'backends = ["onnxruntime"]',
        b'runtime = "onnxruntime"',
        b'artifact = "onnx-qdq"',
        b'precisions = ["int8"]',
        b'sources = ["s"]',
        b'accelerator = { name = "a", kind = "cpu" }',
        b"firmware = []",
        b'quantization = { source = "s" }',
    ]
