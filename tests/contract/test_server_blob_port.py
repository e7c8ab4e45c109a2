"""The blob store port's suite: on memory, on a folder, and through obstore on memory, a folder and S3."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fleet.errors import BundleError
from fleet.ids import Digest
from object_store import s3
from processes import free_port
from server.adapters.blobs_folder import FolderBlobStore
from server.adapters.blobs_object_store import ObjectBlobStore
from server.errors import NotFoundError, SettingsError, StoreError, TooLargeError
from server.ports.blobs import BlobStore
from trust_world import MemoryBlobs


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3(tmp_path_factory.mktemp("s3")) as store:
        yield store.url


@pytest.fixture(params=["memory", "folder", "object store in memory", "object store in a folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "memory":
        return MemoryBlobs()
    if request.param == "folder":
        return FolderBlobStore(tmp_path / "blobs")
    if request.param == "object store in memory":
        return ObjectBlobStore("memory:///")
    (tmp_path / "objects").mkdir()
    local = f"file://{tmp_path / 'objects'}"
    return ObjectBlobStore(local if "folder" in request.param else f"{request.getfixturevalue('bucket')}/a")


@pytest.mark.parametrize("data", [b"", b"x", bytes(3_000_000)])
def test_what_was_written_is_read(blobs: BlobStore, data: bytes) -> None:
    digest = Digest.of(data)
    assert not blobs.has(digest)
    assert blobs.write(digest, [data[:10], data[10:]], len(data)) == len(data)
    assert blobs.has(digest)
    assert (blobs.read(digest), blobs.size(digest)) == (data, len(data))
    assert b"".join(blobs.stream(digest)) == data
    assert blobs.write(digest, [data], len(data)) == len(data)


def test_a_piece_of_what_was_written_is_read(blobs: BlobStore) -> None:
    data = bytes(range(256)) * 9000
    digest = Digest.of(data)
    blobs.write(digest, [data], len(data))
    assert blobs.read_range(digest, 0, 10) == data[:10]
    assert blobs.read_range(digest, 1_000_000, 300_000) == data[1_000_000:1_300_000]
    assert blobs.read_range(digest, len(data) - 3, 10) == data[-3:]


def test_what_was_deleted_is_gone(blobs: BlobStore) -> None:
    digest = Digest.of(b"old")
    blobs.write(digest, [b"old"], 10)
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.has(digest)
    blobs.write(digest, [b"old"], 10)
    assert blobs.read(digest) == b"old"


def test_an_address_serves_the_bytes_without_the_server(blobs: BlobStore) -> None:
    """Only an object store has addresses; whoever is given one needs nothing else."""
    digest = Digest.of(b"model")
    blobs.write(digest, [b"model"], 10)
    address = blobs.address(digest)
    if address:
        assert httpx.get(address, headers={"range": "bytes=1-3"}).content == b"ode"


def test_an_address_is_good_for_one_file_and_for_a_while(bucket: str) -> None:
    """Somebody has a device's address from a log: another file is not had by it, nor this one tomorrow."""
    if shutil.which("faketime") is None:
        pytest.skip("the program faketime is not installed")
    blobs, one, two = ObjectBlobStore(f"{bucket}/b"), Digest.of(b"one"), Digest.of(b"two")
    for digest, data in ((one, b"one"), (two, b"two")):
        blobs.write(digest, [data], 10)
    code = (
        "import sys; from fleet.ids import Digest\n"
        "from server.adapters.blobs_object_store import ObjectBlobStore\n"
        "print(ObjectBlobStore(sys.argv[1]).address(Digest(sys.argv[2])))\n"
    )
    asked = [sys.executable, "-c", code, f"{bucket}/b", str(one)]
    then = subprocess.run(["faketime", "-f", "-16m", *asked], check=True, capture_output=True, text=True)
    good = blobs.address(one)
    for address, status in ((good, 200), (good.replace(one.hex, two.hex), 403), (then.stdout.strip(), 403)):
        assert httpx.get(address).status_code == status
    assert httpx.put(good, content=b"evil").status_code == 403
    assert blobs.read(one) == b"one"


def test_what_is_not_there_is_not_found(blobs: BlobStore) -> None:
    for ask in (
        blobs.read,
        blobs.size,
        lambda digest: list(blobs.stream(digest)),
        lambda digest: blobs.read_range(digest, 0, 1),
    ):
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


@pytest.mark.parametrize("url", ["", "ftp://bucket", "blobs", "s3//bucket"])
def test_what_is_no_object_store_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="expected one of"):
        ObjectBlobStore(url)


def test_addresses_of_a_bucket_are_signed_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server: what devices are given names the object, a time, and no secret."""
    for name, value in {
        "ACCESS_KEY_ID": "who",
        "SECRET_ACCESS_KEY": "secret",
        "REGION": "eu-north-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    digest = Digest.of(b"model")
    address = ObjectBlobStore("s3://models/kedge").address(digest)
    assert f"kedge/sha256/{digest.hex}?" in address
    assert "X-Amz-Expires=900" in address
    assert "X-Amz-Signature=" in address
    assert "secret" not in address


def test_an_object_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is down: whoever asks is told so in one line, soon, and not of a bug in the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name, value in (("ALLOW_HTTP", "true"), ("ACCESS_KEY_ID", "who"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    store, digest = ObjectBlobStore("s3://bucket"), Digest.of(b"x")
    for ask in (store.has, store.read, store.delete, lambda x: store.write(x, [b"x"], 1)):
        with pytest.raises(StoreError, match=r"object store: .*127\.0\.0\.1") as raised:
            ask(digest)
        assert "\n" not in str(raised.value)


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
