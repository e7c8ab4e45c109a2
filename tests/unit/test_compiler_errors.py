"""What tools say went wrong, as it may stand in a bundle: the same wherever and whenever that is made."""

from __future__ import annotations

import tempfile
from pathlib import Path

from compiler.errors import one_line


def test_a_tools_words_are_one_line_and_short() -> None:
    assert one_line(ValueError("expected\n  this;\tgot that")) == "expected this; got that"
    assert len(one_line("x" * 5000)) == 300
    assert len(one_line("x" * 5000, 40)) == 40


def test_where_a_run_kept_its_files_is_not_told() -> None:
    """ONNX Runtime names the file that it cannot load, and each run has a folder of its own."""
    here = Path(tempfile.gettempdir()) / "kedge-compile-x7k2" / "candidates" / "static"
    said = one_line(f"Load model from {here / 'model.onnx'} failed: no such node; see '{here}/log.txt'")
    assert said == "Load model from model.onnx failed: no such node; see 'log.txt'"


def test_when_it_was_and_where_in_memory_is_not_told() -> None:
    said = one_line("2026-11-21 15:26:45.123456789 [E:onnxruntime] at 0x7f3a9c001230: no kernel 0x10")
    assert said == "[E:onnxruntime] at 0x…: no kernel 0x10"
