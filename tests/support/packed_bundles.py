"""Bundles packed by hand: what `kedge compile` writes of a model that makes `y` (n, 2) of `x` (n, 4)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from device_agent.ports import Array
from fleet.bundle import description, manifest
from fleet.ids import Digest
from server.ports.blobs import BlobStore


class Packed(NamedTuple):
    """A bundle's files by their digests, and which of them is its manifest."""

    digest: Digest
    blobs: dict[Digest, bytes]

    def put_into(self, blobs: BlobStore) -> manifest.Bundle:
        """Store its files; return it to be read from there."""
        for digest, data in self.blobs.items():
            blobs.write(digest, [data], len(data))
        return manifest.Bundle(self.digest, blobs.read)

    def layout(self, folder: Path) -> Path:
        """Write it as an OCI image layout; return its folder."""
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for digest, data in self.blobs.items():
            (blobs / digest.hex).write_bytes(data)
        size = len(self.blobs[self.digest])
        entry = {"mediaType": manifest.MANIFEST_TYPE, "digest": str(self.digest), "size": size}
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return folder


class Proof(NamedTuple):
    """Golden inputs, what the model makes of them, and how far a device may be off."""

    x: Array
    y: Array
    tolerance: float


def pack(weights: bytes, *, model: str, target: str, proof: Proof | None = None) -> Packed:
    """Return a bundle: with golden data where there is a proof, else with a report that says nothing."""
    samples, tolerance = 1, dict[str, description.Tolerance]()
    files = {(manifest.Role.MODEL, "model.onnx"): weights}
    if proof is None:
        files[manifest.Role.REPORT, "report.html"] = b"<html>"
    else:
        samples = len(proof.x)
        tolerance["y"] = description.Tolerance(atol=proof.tolerance, rtol=proof.tolerance)
        files[manifest.Role.GOLDEN, "i.npz"] = _npz(x=proof.x)
        files[manifest.Role.GOLDEN, "o.npz"] = _npz(y=proof.y)
    about = description.BundleDescription(
        model=model,
        target=target,
        kind="onnx",
        artifact="model.onnx",
        precision="float32",
        inputs=(description.TensorSpec(name="x", datatype="FP32", shape=(-1, 4), batched=True),),
        outputs=(description.TensorSpec(name="y", datatype="FP32", shape=(-1, 2), batched=True),),
        requires=description.Requirements(runtime="onnxruntime"),
        golden=description.Golden(inputs="i.npz", outputs="o.npz", samples=samples, tolerance=tolerance),
    )
    described = {(manifest.Role.DESCRIPTION, manifest.DESCRIPTION_PATH): description.encode(about)}
    return _manifest({**described, **files})


def _manifest(files: Mapping[tuple[manifest.Role, str], bytes]) -> Packed:
    made = manifest.encode(
        manifest.Manifest(
            schema_version=2,
            media_type=manifest.MANIFEST_TYPE,
            artifact_type=manifest.ARTIFACT_TYPE,
            config=manifest.Descriptor(media_type=manifest.CONFIG_TYPE, digest=Digest.of(b"{}"), size=2),
            layers=tuple(manifest.layer(role, path, data) for (role, path), data in files.items()),
        )
    )
    return Packed(Digest.of(made), {Digest.of(data): data for data in (*files.values(), b"{}", made)})


def _npz(**arrays: Array) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()
