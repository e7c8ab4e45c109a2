"""Compiling for one chip, and running what was compiled, in the tool-chain's own environment."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from compiler import toolchains
from compiler.errors import CompileError
from compiler.limits import COMPILE_LIMITS, Limits
from compiler.qnn import contexts, stamps
from compiler.qnn.contexts import Context
from compiler.tensors import Arrays
from firmware_profiles.profile import Accelerator

TOOLCHAIN: Final = "qnn"
PACKAGE: Final = "onnxruntime-qnn"
_SHOWN: Final = 4


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """One operator of a context binary.

    Attributes:
        operator: in QNN's operator set, such as "Conv2d".
        nodes: names of the nodes of the ONNX graph that it stands for.
    """

    operator: str
    nodes: tuple[str, ...]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    placed: tuple[Operator, ...]
    refused: dict[str, str]
    reason: str


def compile_model(
    model: Path, out: Path, accelerator: Accelerator, scratch: Path, limits: Limits
) -> tuple[Context, tuple[Operator, ...]]:
    """Compile a model into a context binary, wrapped in ONNX.

    Args:
        model: an ONNX file of Q/DQ nodes, or of floats.
        out: the file to write.
        accelerator: of the target.
        scratch: an empty folder for intermediate files.
        limits: of the compiler's process.

    Returns:
        What the binary says of itself, and its operators.

    Raises:
        CompileError: the HTP does not take all of it, or the binary is for another chip.
    """
    request = {
        "model": str(model),
        "out": str(out),
        "soc_model": accelerator.soc,
        "htp_arch": accelerator.version.removeprefix("v"),
        "log": str(scratch / "log.txt"),
        "trace": str(scratch / "trace"),
    }
    environment = toolchains.environment(TOOLCHAIN)
    got = environment.call("qnn_compile", request, scratch=scratch, limits=limits)
    answer = msgspec.convert(got, _Answer)
    if answer.reason:
        raise CompileError(_refusal(answer, accelerator))
    context = contexts.read(out)
    stamps.check(context.stamp, accelerator)
    return context, answer.placed


def _refusal(answer: _Answer, accelerator: Accelerator) -> str:
    if not answer.refused:
        return f"{accelerator.name}: {answer.reason[:300]}"
    return f"{accelerator.name} does not take {listed(answer.refused)}"


def listed(nodes: Mapping[str, str]) -> str:
    """Return nodes, given with their types, in words: how many of each type, and the first of their names."""
    counts = Counter(nodes.values())
    first = {kind: next(x for x, y in nodes.items() if y == kind) for kind in counts}
    shown = [f"{count} {kind} ({first[kind]!r})" for kind, count in counts.most_common(_SHOWN)]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {more} other types" if more > 0 else "")


class Emulation:
    """A context binary in Qualcomm's emulation of the HTP, in a process of its own that ends with it."""

    def __init__(self, artifact: Path) -> None:
        """Load it.

        Raises:
            MissingToolchainError: the tool-chain is not installed.
            CompileError: the emulation does not load it.
        """
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="kedge-qnn-"))
            self._runner: Final = toolchains.environment(TOOLCHAIN).serve(
                "qnn_emulate",
                {"model": str(artifact.absolute())},
                scratch=Path(scratch),
                limits=COMPILE_LIMITS,
            )
            stack.callback(self._runner.close)
            weakref.finalize(self, stack.pop_all().close)

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample."""
        return self._runner.run(feed)
