"""The blob store port's suite, on memory and on a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.errors import BundleError
from fleet.ids import Digest
from server.adapters.blobs_folder import FolderBlobStore
from server.errors import NotFoundError, TooLargeError
from server.ports.blobs import BlobStore
from trust_world import MemoryBlobs


@pytest.fixture(params=["memory", "folder"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryBlobs() if request.param == "memory" else FolderBlobStore(tmp_path / "blobs")


@pytest.mark.parametrize("data", [b"", b"x", bytes(3_000_000)])
def test_what_was_written_is_read(blobs: BlobStore, data: bytes) -> None:
    digest = Digest.of(data)
    assert not blobs.has(digest)
    assert blobs.write(digest, [data[:10], data[10:]], len(data)) == len(data)
    assert blobs.has(digest)
    assert (blobs.read(digest), blobs.size(digest)) == (data, len(data))
    assert b"".join(blobs.stream(digest)) == data
    assert blobs.write(digest, [data], len(data)) == len(data)


def test_what_is_not_there_is_not_found(blobs: BlobStore) -> None:
    for ask in (blobs.read, blobs.size, lambda digest: list(blobs.stream(digest))):
        with pytest.raises(NotFoundError):
            ask(Digest.of(b"nothing"))


def test_other_bytes_than_the_digests_are_refused(blobs: BlobStore) -> None:
    digest = Digest.of(b"good")
    with pytest.raises(BundleError):
        blobs.write(digest, [b"evil"], 100)
    assert not blobs.has(digest)


def test_endless_data_ends_at_the_limit(blobs: BlobStore) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    with pytest.raises(TooLargeError):
        blobs.write(Digest.of(b"good"), endless(), 10_000)
    assert not blobs.has(Digest.of(b"good"))


def test_a_folder_forgets_half_an_upload_at_the_next_start(tmp_path: Path) -> None:
    """The server was killed while a file came in."""

    def killed() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    store = FolderBlobStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.write(Digest.of(b"half and half"), killed(), 100)
    (tmp_path / "uploading-left").write_bytes(b"half")
    FolderBlobStore(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_notices_bytes_that_changed_on_disk(tmp_path: Path) -> None:
    store, digest = FolderBlobStore(tmp_path), Digest.of(b"good")
    store.write(digest, [b"good"], 10)
    (tmp_path / digest.hex[:2] / digest.hex).write_bytes(b"rust")
    with pytest.raises(BundleError, match="stored bytes"):
        store.read(digest)
