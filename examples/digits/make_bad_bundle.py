"""Make the bad release of the demo: `python examples/digits/make_bad_bundle.py GOOD BAD`.

An honest mistake of release engineering: the bundle is put together with the weights of a wrong training
run. Every digest is right and the releaser signs it, so nothing that checks signatures can tell. Only running
it shows that it does not give the answers that its own golden vectors promise: the device must notice, and
go back to what it ran before.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from fleet.bundle import manifest as manifests
from fleet.bundle.manifest import Bundle, Role
from fleet.errors import BundleError
from fleet.ids import Digest


def wrong_weights(model: bytes) -> bytes:
    """Return the model with the values of its largest tensor in another order: same size, same types."""
    proto = onnx.load_from_string(model)
    largest = max(proto.graph.initializer, key=lambda x: int(np.prod(x.dims)))
    values = numpy_helper.to_array(largest)
    shuffled = np.random.default_rng(0).permutation(values.reshape(-1)).reshape(values.shape)
    largest.CopyFrom(numpy_helper.from_array(shuffled, largest.name))
    return proto.SerializeToString()


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / "sha256" / Digest(digest).hex


def make_bad_bundle(good: Path, bad: Path) -> Digest:
    """Write a copy of an OCI image layout whose model is a wrong one, and whose digests are all right.

    Args:
        good: folder of a bundle whose model is an ONNX file.
        bad: folder to write.

    Returns:
        The digest of the bad bundle's manifest.

    Raises:
        BundleError: the bundle is damaged, or its model is not ONNX.
    """
    index = msgspec.json.decode((good / "index.json").read_bytes())
    entry = index["manifests"][0]
    bundle = Bundle(Digest(entry["digest"]), lambda digest: _blob(good, digest).read_bytes())
    description = bundle.description
    if not description.kind.startswith("onnx"):
        raise BundleError(f"{good}: expected an ONNX model, got {description.kind!r}")
    shutil.copytree(good, bad)
    wrong = wrong_weights(bundle.bytes_of(description.artifact))
    before = bundle.manifest.file(description.artifact)
    after = msgspec.structs.replace(
        manifests.layer(Role.MODEL, description.artifact, wrong),
        annotations=before.annotations,
        media_type=before.media_type,
    )
    layers = tuple(after if x is before else x for x in bundle.manifest.layers)
    data = manifests.encode(msgspec.structs.replace(bundle.manifest, layers=layers))
    for blob in (wrong, data):
        _blob(bad, Digest.of(blob)).write_bytes(blob)
    for stale in (before.digest, bundle.digest):
        _blob(bad, stale).unlink()
    entry |= {"digest": str(Digest.of(data)), "size": len(data)}
    (bad / "index.json").write_bytes(msgspec.json.encode(index))
    return Digest.of(data)


if __name__ == "__main__":
    print(make_bad_bundle(Path(sys.argv[1]), Path(sys.argv[2])))
