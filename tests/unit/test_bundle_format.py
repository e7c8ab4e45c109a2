"""A bundle's identity covers every byte, and a bad manifest is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.bundle import chunks, description, engine_plan, features, interface, manifest
from fleet.bundle.cutting import CHUNK_MAX, CHUNK_MIN
from fleet.errors import BundleError
from fleet.ids import Digest
from fleet.telemetry import baseline

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


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\\b", "a\0b", "\x1b[2Ja"]
)
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


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("model.onnx/weights", "expected a file or a folder at 'model.onnx', got both"),
        ("a" * 241, "expected paths of at most 240 bytes, got 241"),
        ("ä/" * 90 + "a", "expected paths of at most 240 bytes, got 271"),
    ],
)
def test_paths_that_no_folder_can_hold_are_refused(path: str, refusal: str) -> None:
    """A file of a hostile bundle is another one's folder, or has a name that no file system takes."""
    digest, store = blobs()
    good = manifest.decode(store[digest])
    evil = msgspec.structs.replace(
        good, layers=(*good.layers, manifest.layer(manifest.Role.MODEL, path, b""))
    )
    with pytest.raises(BundleError, match=refusal):
        manifest.decode(manifest.encode(evil))


@pytest.mark.parametrize(
    "artifact", ["/etc/passwd", "../model.onnx", "", "model", "report.html", "model.onnx/../../x"]
)
def test_the_runtime_is_given_nothing_but_the_bundles_own_model(artifact: str) -> None:
    """A hostile bundle names another file of the machine as its artifact, whose answers would tell of it."""
    digest, store = blobs()
    bundle = manifest.Bundle(digest, store.__getitem__)
    assert list(bundle.model_files()) == ["model.onnx"]
    evil = _described(digest, store, msgspec.structs.replace(DESCRIPTION, artifact=artifact))
    bundle = manifest.Bundle(evil, store.__getitem__)
    with pytest.raises(BundleError, match="expected an artifact"):
        bundle.model_files()


def _described(digest: Digest, store: dict[str, bytes], other: description.BundleDescription) -> Digest:
    """Put a bundle with another description into the store; return its digest."""
    body = description.encode(other)
    layer = manifest.layer(manifest.Role.DESCRIPTION, manifest.DESCRIPTION_PATH, body)
    good = manifest.decode(store[digest])
    data = manifest.encode(msgspec.structs.replace(good, layers=(layer, *good.layers[1:])))
    store[str(layer.digest)], store[str(Digest.of(data))] = body, data
    return Digest.of(data)


def test_a_tensor_of_no_known_type_is_refused() -> None:
    spec = msgspec.structs.replace(DESCRIPTION.inputs[0], datatype="FP99")
    other = msgspec.structs.replace(DESCRIPTION, inputs=(spec,))
    with pytest.raises(BundleError, match=r"datatype: expected one of .* got 'FP99'"):
        description.decode(description.encode(other))


@pytest.mark.parametrize(
    "decode",
    [
        *(manifest.decode, description.decode, chunks.decode, baseline.decode),
        *(features.decode, interface.decode, engine_plan.decode),
    ],
)
@pytest.mark.parametrize("data", [b'{"schema": "\xff\xfe"}', b'{"x":' + b"[" * 5000])
def test_text_of_no_encoding_and_deep_nesting_are_bundle_errors(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    """A hostile bundle's JSON has bytes that are no UTF-8, or brackets without end: no reader stumbles."""
    with pytest.raises(BundleError):
        decode(data)


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


@given(st.dictionaries(st.binary(max_size=9), st.lists(st.binary(max_size=99), max_size=5), max_size=4))
def test_an_index_comes_back_as_it_was(blobs: dict[bytes, list[bytes]]) -> None:
    index = chunks.ChunkIndex(blobs={Digest.of(k): chunks.chunks_of(v) for k, v in blobs.items()})
    assert chunks.decode(chunks.encode(index)) == index


def test_the_index_of_the_largest_model_is_within_the_limit() -> None:
    """4 GB in the smallest chunks that there are."""
    count = 4 * 1024**3 // CHUNK_MIN
    chunk = chunks.Chunk("0" * 64, CHUNK_MIN)
    index = chunks.ChunkIndex(blobs={Digest.of(b""): (chunk,) * count})
    assert len(chunks.encode(index)) < chunks.INDEX_LIMIT


def test_an_index_with_an_oversized_chunk_is_refused() -> None:
    evil = chunks.ChunkIndex(blobs={Digest.of(b""): (chunks.Chunk("0" * 64, CHUNK_MAX + 1),)})
    with pytest.raises(BundleError, match="expected chunks of"):
        chunks.decode(chunks.encode(evil))
