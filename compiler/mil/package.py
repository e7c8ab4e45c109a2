"""The package that Core ML loads: a folder with a manifest, a specification and weights.

The manifest's identifiers are derived from the content, and nothing in it tells when it was made, so the same
model gives the same bytes. Format: `ModelPackage` of coremltools, MIL blob storage version 2.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from compiler.mil.slimming import Message, slim
from fleet.bundle import features
from fleet.bundle.features import Port, Ports
from fleet.ids import Digest

MODEL: Final = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS: Final = "Data/com.apple.CoreML/weights/weight.bin"
MANIFEST: Final = "Manifest.json"
_AUTHOR: Final = "com.apple.CoreML"
_ITEMS: Final = (
    ("model.mlmodel", "CoreML Model Specification", f"{_AUTHOR}/model.mlmodel"),
    ("weights", "CoreML Model Weights", f"{_AUTHOR}/weights"),
)
_SPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:kedge:mlpackage")


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What a package holds.

    Attributes:
        specification: the bytes of Core ML's `Model` message.
        weights: the bytes of the blob file, b"" where nothing is large enough for it.
    """

    specification: bytes
    weights: bytes

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.specification) + len(self.weights)


def content(
    specification: Message, weights: Path, inputs: Sequence[Port], outputs: Sequence[Port]
) -> Content:
    """Return a package's content from what coremltools made.

    Args:
        specification: the `Model` message; its metadata are replaced.
        weights: the folder with the blob file.
        inputs: of the ONNX model.
        outputs: of the ONNX model.
    """
    ports = Ports(
        inputs=_as_named(inputs, specification.description.input),
        outputs=_as_named(outputs, specification.description.output),
    )
    slim(
        specification.mlProgram.functions["main"],
        frozenset(x.feature for x in (*ports.inputs, *ports.outputs)),
    )
    specification.description.metadata.Clear()
    specification.description.metadata.userDefined[features.KEY] = features.encode(ports)
    blob = weights / Path(WEIGHTS).name
    return Content(
        specification=specification.SerializeToString(deterministic=True),
        weights=blob.read_bytes() if blob.is_file() else b"",
    )


def _as_named(ports: Sequence[Port], found: Sequence[Message]) -> tuple[Port, ...]:
    """Take over the names of features: coremltools renames those that are words of its own language."""
    return tuple(msgspec.structs.replace(port, feature=x.name) for port, x in zip(ports, found, strict=True))


def write(content_: Content, folder: Path) -> None:
    """Write a package."""
    files = {MODEL: content_.specification, MANIFEST: _manifest(content_)}
    if content_.weights:
        files[WEIGHTS] = content_.weights
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _manifest(content_: Content) -> bytes:
    digest = str(Digest.of(content_.specification + content_.weights))
    entries = {}
    for name, description, path in _ITEMS[: 2 if content_.weights else 1]:
        key = str(uuid.uuid5(_SPACE, f"{digest} {name}")).upper()
        entries[key] = {"author": _AUTHOR, "description": description, "name": name, "path": path}
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "fileFormatVersion": "1.0.0",
                "itemInfoEntries": entries,
                "rootModelIdentifier": next(iter(entries)),
            }
        ),
        indent=4,
    )
