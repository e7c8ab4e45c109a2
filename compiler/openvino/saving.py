"""Writing an IR as an artifact: two files, the same bytes for the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from compiler import files
from compiler.artifacts import Artifact
from compiler.errors import ModelRefusedError
from compiler.openvino import ir, library
from compiler.openvino.library import Model
from compiler.tensors import spec
from fleet.bundle.description import TensorSpec

MAIN: Final = "model.xml"
WEIGHTS: Final = "model.bin"
KIND: Final = "openvino-ir"


def save(model: Model, folder: Path, *, runtime: str, device: str = "", half: bool = False) -> Artifact:
    """Write a model.

    Args:
        model: its inputs and outputs named as those of the source.
        folder: where the files go.
        runtime: the device runtime that loads it.
        device: that it is for; "" is the CPU.
        half: constants as float16.

    Raises:
        CompileError: it cannot be written.
    """
    main = folder / MAIN
    library.write(model, main, half=half)
    main.write_bytes(ir.small(ir.parse(main.read_bytes(), MAIN), device))
    static = not model.is_dynamic()
    return Artifact(
        folder=folder,
        main=MAIN,
        kind=KIND,
        runtime=runtime,
        inputs=tuple(map(_spec, model.inputs)) if static else (),
        outputs=tuple(map(_spec, model.outputs)) if static else (),
    )


def _spec(port: Model) -> TensorSpec:
    kind = np.dtype(port.get_element_type().to_dtype())
    return spec(port.get_any_name(), kind, tuple(port.get_shape()))


def vet(artifact: Artifact) -> None:
    """Check an IR that somebody else may have made, before the library reads it.

    Raises:
        ModelRefusedError: malformed or hostile.
    """
    weights = artifact.folder / WEIGHTS
    if artifact.main != MAIN or not weights.is_file():
        raise ModelRefusedError(f"{artifact.main}: expected an IR of {MAIN} and {WEIGHTS}")
    data = files.read(artifact.path, ir.XML_LIMIT, ModelRefusedError)
    ir.check(data, weights.stat().st_size, MAIN)
