"""The ModelPack model config, the bundle's OCI config (CNCF ModelPack specification, `config.md`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from compiler.candidates import Candidate, Scheme
from fleet.bundle.description import BundleDescription
from fleet.ids import Digest

#: Kind of artifact to the name of its format.
_FORMATS: Final = {"openvino-ir": "openvino", "tflite-int8": "tflite", "mlpackage": "coreml"}


def encode(about: BundleDescription, candidate: Candidate, layers: Sequence[bytes]) -> bytes:
    """Return the config's bytes; layers are in the manifest's order, uncompressed."""
    descriptor: dict[str, object] = {
        "name": about.model,
        "title": f"{about.model} for {about.target}",
    }
    if about.licence:
        descriptor["licenses"] = [about.licence]
    config: dict[str, object] = {
        "format": _FORMATS.get(about.kind, "onnx"),
        "precision": candidate.precision,
    }
    if candidate.scheme is not Scheme.FLOAT:
        config["quantization"] = candidate.name
    return msgspec.json.encode(
        {
            "descriptor": descriptor,
            "config": config,
            "modelfs": {"type": "layers", "diffIds": [str(Digest.of(x)) for x in layers]},
        },
        order="deterministic",
    )
