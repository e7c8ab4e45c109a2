"""What makes two compilations the same question, so that the first one's answer holds for the second."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

import report_facts
from compiler import earlier
from compiler.bundle import layout
from compiler.limits import GIB, Limits
from compiler.requests import BundleFacts, Chosen, CompileRequest, CompileResult, Latencies

FACTS = report_facts.FACTS


@pytest.fixture
def asked(tmp_path: Path) -> CompileRequest:
    for name in ("m.onnx", "c.npz", "e.npz"):
        (tmp_path / name).write_bytes(name.encode())
    layout.write(tmp_path / "out.bundle", {}, b"{}", {})
    return CompileRequest(
        model=str(tmp_path / "m.onnx"),
        target="coral-edgetpu",
        calibration=str(tmp_path / "c.npz"),
        evaluation=str(tmp_path / "e.npz"),
        out=str(tmp_path / "out.bundle"),
        name="m",
        cache=str(tmp_path / "cache"),
    )


def result(out: str, *statuses: str) -> CompileResult:
    """Return a result of candidates of which this became."""
    assert FACTS.about.accuracy is not None
    return CompileResult(
        model="m",
        target="coral-edgetpu",
        bundle=BundleFacts(path=out, digest="sha256:" + "0" * 64),
        chosen=Chosen(name="a", precision="int8", scheme="static", backend="edgetpu", runtime="tflite"),
        accuracy=FACTS.about.accuracy,
        size_bytes=FACTS.sizes,
        latency_ms=Latencies(original=None, compiled=None),
        candidates=tuple(report_facts.verdict(x, x) for x in statuses),
        placement=FACTS.placement,
        parity=FACTS.parity,
        sensitivity=None,
        warnings=(),
    )


def test_the_same_question_has_the_same_answer(asked: CompileRequest, tmp_path: Path) -> None:
    earlier.keep(asked, result(asked.out, "chosen", "failed"))
    again = msgspec.structs.replace(asked, out=str(tmp_path / "again.bundle"))
    found = earlier.find(again)
    assert found is not None
    assert found.cached
    assert found.bundle.path == again.out


def test_more_memory_or_time_is_another_question(asked: CompileRequest) -> None:
    """In 2 GiB a candidate failed for want of memory, and another one won: with 16 it need not."""
    tight = Limits(memory_bytes=2 * GIB, cpu_s=60, wall_s=60.0)
    earlier.keep(msgspec.structs.replace(asked, limits=tight), result(asked.out, "chosen", "failed"))
    assert earlier.find(asked) is None


@pytest.mark.parametrize("status", ["not tried", "crashed"])
def test_what_another_run_may_do_better_is_not_kept(asked: CompileRequest, status: str) -> None:
    """The system ended one candidate when memory ran out: tomorrow there may be enough."""
    earlier.keep(asked, result(asked.out, "chosen", status))
    assert earlier.find(asked) is None


def test_another_version_of_a_program_is_another_question(
    asked: CompileRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of the compiler for the Edge TPU leaves it where it was."""
    program = tmp_path / "bin" / "edgetpu_compiler"
    program.parent.mkdir()
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    earlier.keep(asked, result(asked.out, "chosen"))
    assert earlier.find(asked) is not None
    program.write_bytes(b"#!/bin/sh\n# newer\n")
    assert earlier.find(asked) is None
