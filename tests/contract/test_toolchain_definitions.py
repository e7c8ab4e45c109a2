"""What every tool-chain's definition keeps to, and that `kedge doctor` knows every extra."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compiler import toolchains
from compiler.toolchains import definitions
from compiler.toolchains.errors import ToolchainDefinitionError, UnknownToolchainError
from kedge import doctor

ROOT = Path(__file__).resolve().parents[2]
STORE = toolchains.store()


@pytest.mark.parametrize("name", toolchains.names())
def test_every_distribution_is_locked_by_hash_and_by_nothing_else(name: str) -> None:
    """A lock with an address would send every user to that registry; one without hashes, to any file."""
    definition = STORE.definition(name)
    assert "://" not in definition.lock
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", definition.lock, flags=re.MULTILINE).strip())
    assert definition.distributions == len(entries) > 0
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9.-]*==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("name", toolchains.names())
def test_every_definition_has_a_health_check(name: str) -> None:
    assert (STORE.workers / f"{STORE.definition(name).health}.py").is_file()


def test_an_unknown_toolchain_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UnknownToolchainError, match=r"expected a tool-chain of .*onnx2tf.*; got 'qmm'"):
        toolchains.environment("qmm")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('name = "other"', "missing required field"),
        (
            'name = "other"\npurpose = ""\npython = "3.x"\nmegabytes = 1\nhealth = ""\nrequirements = []',
            "3.x",
        ),
        (
            'name = "b"\npurpose = ""\npython = ">3"\nmegabytes = 1\nhealth = ""\nrequirements = []',
            "expected 'a'",
        ),
        (
            'name = "a"\npurpose = ""\npython = ">3"\nmegabytes = 1\nhealth = ""\nrequirements = []',
            "lock file",
        ),
    ],
)
def test_a_malformed_definition_is_told_with_file_and_reason(tmp_path: Path, toml: str, said: str) -> None:
    (tmp_path / "a.toml").write_text(toml)
    with pytest.raises(ToolchainDefinitionError, match=rf"a\.toml: .*{re.escape(said)}"):
        definitions.load("a", tmp_path)


def test_the_doctor_knows_every_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([a-z0-9-]+) = \[", table, re.MULTILINE)) - {"all"}
    assert extras == set(doctor.EXTRAS)
    assert doctor.brought_by("compiler-openvino") == [
        "jinja2",
        "nncf",
        "onnx",
        "onnxruntime",
        "openvino",
        "rich",
    ]
