"""A bundle's identity covers every byte, and a bad manifest is refused with its reason."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.bundle import chunks, description, manifest
from fleet.errors import BundleError
from fleet.ids import Digest

DESCRIPTION = description.BundleDescription(
    model="digits",
    target="laptop-x86",
    kind="onnx",
    artifact="model.onnx",
    precision="float32",
    inputs=(description.TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8), batched=True),),
    outputs=(description.TensorSpec(name="logits", datatype="FP32", shape=(-1, 10), batched=True),),
    requires=description.Requirements(runtime="onnxruntime"),
    golden=description.Golden(
        inputs="golden/inputs.npz",
        outputs="golden/outputs.npz",
        samples=1,
        tolerance={"logits": description.Tolerance(atol=1e-4, rtol=1e-3)},
    ),
    accuracy=description.Accuracy(
        original=0.9, compiled=0.89, drop_points=1.0, agreement=0.98, interval=(0.0, 2.0), samples=100
    ),
)


def blobs() -> tuple[Digest, dict[str, bytes]]:
    files = {
        (manifest.Role.DESCRIPTION, manifest.DESCRIPTION_PATH): description.encode(DESCRIPTION),
        (manifest.Role.MODEL, "model.onnx"): b"weights",
        (manifest.Role.REPORT, "report.html"): b"<html>",
    }
    config = b"{}"
    made = manifest.Manifest(
        schema_version=2,
        media_type=manifest.MANIFEST_TYPE,
        artifact_type=manifest.ARTIFACT_TYPE,
        config=manifest.Descriptor(
            media_type=manifest.CONFIG_TYPE, digest=Digest.of(config), size=len(config)
        ),
        layers=tuple(manifest.layer(role, path, data) for (role, path), data in files.items()),
    )
    data = manifest.encode(made)
    store = {str(Digest.of(x)): x for x in (*files.values(), config, data)}
    return Digest.of(data), store


def test_a_bundle_reads_back() -> None:
    digest, store = blobs()
    bundle = manifest.Bundle(digest, store.__getitem__)
    bundle.verify()
    assert bundle.description == DESCRIPTION
    assert bundle.bytes_of("model.onnx") == b"weights"
    assert [x.path for x in bundle.manifest.for_device()] == ["kedge/bundle.json", "model.onnx"]


def test_every_single_altered_byte_is_found() -> None:
    """Somebody changes one bit of one file of a bundle: whichever it is, the bundle no longer verifies."""
    digest, store = blobs()
    for name, data in store.items():
        for place in range(len(data)):
            altered = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(BundleError, match="blob: expected sha256"):
                manifest.Bundle(digest, {**store, name: altered}.__getitem__).verify()


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\\b"])
def test_a_path_that_leaves_the_bundle_is_refused(path: str) -> None:
    """A hostile bundle names a file outside its folder: the manifest is refused before a byte is written."""
    digest, store = blobs()
    good = manifest.decode(store[digest])
    evil = msgspec.structs.replace(good, layers=(manifest.layer(manifest.Role.MODEL, path, b""),))
    with pytest.raises(BundleError, match="expected a relative file path"):
        manifest.decode(manifest.encode(evil))


def test_a_path_that_stands_twice_is_refused() -> None:
    digest, store = blobs()
    good = manifest.decode(store[digest])
    evil = msgspec.structs.replace(good, layers=(*good.layers, good.layers[0]))
    with pytest.raises(BundleError, match="stands twice"):
        manifest.decode(manifest.encode(evil))


@given(st.binary(max_size=200))
def test_garbage_is_a_bundle_error(data: bytes) -> None:
    for decode in (manifest.decode, description.decode, chunks.decode):
        with pytest.raises(BundleError):
            decode(data)


def test_too_long_a_manifest_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BundleError, match="expected at most"):
        manifest.decode(b" " * (manifest.MANIFEST_LIMIT + 1))


def test_a_newer_schema_is_refused() -> None:
    newer = msgspec.structs.replace(DESCRIPTION, schema=2)
    with pytest.raises(BundleError, match="expected schema 1, got 2"):
        description.decode(description.encode(newer))


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_chunks_put_together_are_the_blob(blob: bytes, size: int) -> None:
    parts = chunks.cut(blob, size)
    assert b"".join(parts) == blob
    index = chunks.decode(chunks.encode(chunks.index_of({Digest.of(blob): blob}, size)))
    listed = index.blobs[Digest.of(blob)]
    assert [c.digest for c in listed] == [Digest.of(p) for p in parts]
    assert sum(c.size for c in listed) == len(blob)


def test_an_index_with_an_oversized_chunk_is_refused() -> None:
    evil = chunks.ChunkIndex(blobs={Digest.of(b""): (chunks.Chunk("0" * 64, chunks.CHUNK_SIZE + 1),)})
    with pytest.raises(BundleError, match="expected chunks of"):
        chunks.decode(chunks.encode(evil))
