"""A bundle on disk: an OCI image layout (OCI image specification 1.1)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from fleet.bundle import manifest
from fleet.bundle.manifest import Bundle, Descriptor, Manifest, Role
from fleet.errors import BundleError, KedgeError
from fleet.ids import Digest

MARK: Final = "oci-layout"
INDEX: Final = "index.json"
#: Timings and pages made of them: of this machine on that day, so no part of what the digest covers.
MEASUREMENTS: Final = "measurements"
_MARK: Final = b'{"imageLayoutVersion":"1.0.0"}'
#: No blob is larger; a folder that says otherwise is not read.
BLOB_LIMIT: Final = 4 * 1024**3

Files = Mapping[str, tuple[Role, bytes]]


class _Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = manifest.INDEX_TYPE
    manifests: tuple[Descriptor, ...]


def write(folder: Path, files: Files, config: bytes, annotations: dict[str, str]) -> Digest:
    """Write a bundle and return its digest; the folder appears at once and whole.

    Args:
        folder: must not exist, or be a bundle, which is replaced.
        files: role and bytes by path.
        config: the ModelPack model config.
        annotations: of the manifest.

    Raises:
        BundleError: the folder holds something else, or cannot be written.
    """
    check_free(folder)
    descriptors = tuple(manifest.layer(role, path, data) for path, (role, data) in sorted(files.items()))
    body = manifest.encode(
        Manifest(
            schema_version=2,
            media_type=manifest.MANIFEST_TYPE,
            artifact_type=manifest.ARTIFACT_TYPE,
            config=Descriptor(
                media_type=manifest.CONFIG_TYPE, digest=str(Digest.of(config)), size=len(config)
            ),
            layers=descriptors,
            annotations=annotations,
        )
    )
    index = _Index(
        manifests=(
            Descriptor(media_type=manifest.MANIFEST_TYPE, digest=str(Digest.of(body)), size=len(body)),
        )
    )
    blobs = {Digest.of(data).hex: data for data in (body, config, *(data for _, data in files.values()))}
    top = {INDEX: msgspec.json.encode(index, order="deterministic"), MARK: _MARK}
    try:
        _place(folder, {**{f"blobs/sha256/{x}": data for x, data in blobs.items()}, **top})
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}") from error
    return Digest.of(body)


def _place(folder: Path, files: Mapping[str, bytes]) -> None:
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "blobs" / "sha256").mkdir(parents=True)
    for path, data in files.items():
        (part / path).write_bytes(data)
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


def check_free(folder: Path) -> None:
    """Check that a bundle may be written here.

    Raises:
        BundleError: the folder holds something that is not a bundle.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise BundleError(f"{folder}: expected a new folder, or a bundle to replace; it holds something else")
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder}: expected a folder; got a file")


def read(folder: Path) -> Bundle:
    """Open a bundle; its bytes are checked as they are read.

    Raises:
        BundleError: no bundle, or altered.
    """
    try:
        if (folder / MARK).read_bytes().strip()[:64] != _MARK:
            raise BundleError(f"{folder / MARK}: expected OCI image layout 1.0.0")
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index)
    except OSError as error:
        raise BundleError(f"{folder}: expected a bundle (an OCI image layout); {error.strerror}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{folder / INDEX}: {error}") from error
    if len(index.manifests) != 1:
        raise BundleError(f"{folder / INDEX}: expected one manifest; got {len(index.manifests)}")
    try:
        digest = Digest(index.manifests[0].digest)
    except KedgeError as error:
        raise BundleError(f"{folder / INDEX}: {error}") from error
    return Bundle(digest, lambda wanted: _blob(folder, wanted))


def _blob(folder: Path, digest: Digest) -> bytes:
    path = folder / "blobs" / "sha256" / digest.hex
    try:
        if path.stat().st_size > BLOB_LIMIT:
            raise BundleError(f"{digest}: expected at most {BLOB_LIMIT} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{digest}: {error.strerror}") from error


def verify(folder: Path, bundle: Bundle) -> int:
    """Check every byte of the folder against the digest; return how many bytes that are.

    Raises:
        BundleError: a part is missing or altered, or there is a file that nothing names.
    """
    bundle.verify()
    named = {bundle.digest.hex, Digest(bundle.manifest.config.digest).hex}
    named |= {Digest(x.digest).hex for x in bundle.manifest.layers}
    allowed = {MARK, INDEX, *(f"blobs/sha256/{x}" for x in named)}
    total = 0
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if path.is_dir() or inside.startswith(f"{MEASUREMENTS}/"):
            continue
        if inside not in allowed:
            raise BundleError(f"{folder}: nothing in the manifest names {inside!r}")
        total += path.stat().st_size
    return total
