"""Uploading a bundle: an OCI image layout on disk, of which only the missing blobs travel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from fleet.bundle.manifest import Bundle
from fleet.errors import BundleError
from fleet.ids import Digest
from server.client.http import ApiClient


class _Entry(msgspec.Struct):
    digest: str


class _Index(msgspec.Struct):
    manifests: list[_Entry]


class Layout:
    """A bundle on disk."""

    def __init__(self, folder: Path) -> None:
        """Open the layout.

        Raises:
            BundleError: it is none, or holds not exactly one bundle.
        """
        self.folder = folder
        try:
            index = msgspec.json.decode(_bytes(folder / "index.json"), type=_Index)
        except OSError as error:
            raise BundleError(f"{folder}: no bundle: {error.strerror}: {error.filename}") from error
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{folder}/index.json: {error}") from error
        if len(index.manifests) != 1:
            raise BundleError(f"{folder}: expected one bundle, got {len(index.manifests)}")
        self.bundle = Bundle(Digest(index.manifests[0].digest), self._read)
        self.bundle.verify()

    def path(self, digest: Digest) -> Path:
        """Return a blob's file."""
        return self.folder / "blobs" / "sha256" / digest.hex

    def digests(self) -> list[Digest]:
        """Return every blob of the bundle, the manifest last, so that it never stands without its files."""
        manifest = self.bundle.manifest
        parts = [Digest(part.digest) for part in (manifest.config, *manifest.layers)]
        return [*dict.fromkeys(parts), self.bundle.digest]

    def _read(self, digest: Digest) -> bytes:
        try:
            return _bytes(self.path(digest))
        except OSError as error:
            raise BundleError(f"{self.folder}: blob {digest}: {error.strerror}") from error


def _bytes(path: Path) -> bytes:
    """Return a regular file's bytes: a pipe would never end, and a device could fill the memory."""
    if path.exists() and not path.is_file():
        raise BundleError(f"{path}: expected a file; got a folder, a pipe or a device")
    return path.read_bytes()


def upload(client: ApiClient, layout: Layout, tell: Callable[[Digest, int], None]) -> int:
    """Upload what the server lacks of a bundle; return how many bytes travelled.

    Args:
        client: the server.
        layout: the bundle.
        tell: called with each blob that is uploaded, and its size.

    Raises:
        ClientError: the server refused, or cannot be reached.
    """
    sent = 0
    for digest in layout.digests():
        if client.has_blob(digest):
            continue
        size = layout.path(digest).stat().st_size
        tell(digest, size)
        client.put_blob(digest, layout.path(digest))
        sent += size
    return sent
