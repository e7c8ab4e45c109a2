"""A bundle on disk: an OCI image layout (OCI image specification 1.1)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from compiler.files import read as read_file
from fleet.bundle import manifest
from fleet.bundle.manifest import Bundle, Descriptor, Manifest, Role
from fleet.errors import BundleError, KedgeError
from fleet.ids import Digest

MARK: Final = "oci-layout"
INDEX: Final = "index.json"
#: Timings and pages made of them: of this machine on that day, so no part of what the digest covers.
MEASUREMENTS: Final = "measurements"
#: A signature over the other files (`compiler.bundle.signature`).
SIGNATURE: Final = "model.sig"
_MARK: Final = b'{"imageLayoutVersion":"1.0.0"}'
#: No blob is larger; a folder that says otherwise is not read.
BLOB_LIMIT: Final = 4 * 1024**3
#: Index and mark are small.
_TOP_LIMIT: Final = 1024**2
#: To put a bundle where other processes are putting theirs.
_TRIES: Final = 100
#: No bundle takes so many seconds to write.
_ABANDONED_S: Final = 24 * 3600

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
        raise BundleError(f"{folder}: {error.strerror or error}") from error
    return Digest.of(body)


def _place(folder: Path, files: Mapping[str, bytes]) -> None:
    def fill(part: Path) -> None:
        (part / "blobs" / "sha256").mkdir(parents=True)
        for path, data in files.items():
            (part / path).write_bytes(data)

    _whole(folder, fill)


def place(folder: Path, source: Path) -> None:
    """Copy a bundle, with what lies beside its files, to where nothing or another bundle is.

    Raises:
        BundleError: the folder holds something else, or cannot be written.
    """
    check_free(folder)
    try:
        _whole(folder, lambda part: _copy(source, part))
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror or error}") from error


def _copy(source: Path, part: Path) -> None:
    """Copy files; what stops one of them stops all, with its own reason, as `copytree` does not."""
    part.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        target = part / path.relative_to(source)
        if path.is_dir():
            target.mkdir()
        else:
            shutil.copyfile(path, target)


def _whole(folder: Path, fill: Callable[[Path], object]) -> None:
    folder = folder.resolve()  # a link to a bundle stays, and the bundle is replaced
    _sweep(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        fill(part)
        _swap(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _swap(part: Path, folder: Path) -> None:
    """Put a new bundle where an old one may be, by renaming: nobody ever sees a half."""
    old = part.with_suffix(".old.part")
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # another process took it away
            if folder.exists():
                folder.rename(old)
                shutil.rmtree(old)
        try:
            part.rename(folder)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            return
    raise OSError(errno.EBUSY, "expected nobody else to write it at the same time", str(folder))


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left here; a younger one may still be at work elsewhere."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.\d+(\.old)?\.part")
    for path in folder.parent.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if ours.fullmatch(path.name) and path.stat().st_mtime < time.time() - _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Check that a bundle may be written here, before hours go into making it.

    Raises:
        BundleError: the folder holds something that is not a bundle, or cannot be made.
    """
    try:
        if not _replaceable(folder):
            raise BundleError(
                f"{folder}: expected a new folder, or a bundle to replace; it holds something else"
            )
        _check_writable(folder.resolve().parent)
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror or error}") from error


def _replaceable(folder: Path) -> bool:
    """Return whether nothing or a bundle is there.

    Another process may be replacing it: what one look finds is only believed of a folder that is still the
    same after it.

    Raises:
        BundleError: a file, or a link to nothing.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            before = folder.stat()
            if not stat.S_ISDIR(before.st_mode):
                raise BundleError(f"{folder}: expected a folder; got a file")
            names = {x.name for x in folder.iterdir()}
            if not names or (MARK in names and (folder / MARK).is_file()):
                return True
            if os.path.samestat(before, folder.stat()):
                return False
    if folder.is_symlink():
        raise BundleError(f"{folder}: expected a folder; got a link to nothing")
    return True


def _check_writable(folder: Path) -> None:
    there = next(x for x in (folder, *folder.parents) if x.exists())
    if not there.is_dir():
        raise BundleError(f"{there}: expected a folder; got a file")
    # Only making a folder proves that one can be made: what permissions say is not always so.
    tempfile.TemporaryDirectory(prefix=".kedge-", dir=there).cleanup()


def read(folder: Path) -> Bundle:
    """Open a bundle; its bytes are checked as they are read.

    Raises:
        BundleError: no bundle, or altered.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: expected a bundle, which is a folder; got {_kind(folder)}")
    if not (folder / MARK).is_file():
        raise BundleError(f"{folder}: expected a bundle (an OCI image layout); it has no file {MARK!r}")
    if read_file(folder / MARK, _TOP_LIMIT, BundleError).strip() != _MARK:
        raise BundleError(f"{folder / MARK}: expected OCI image layout 1.0.0")
    try:
        index = msgspec.json.decode(read_file(folder / INDEX, _TOP_LIMIT, BundleError), type=_Index)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / INDEX}: {error}") from error
    if len(index.manifests) != 1:
        raise BundleError(f"{folder / INDEX}: expected one manifest; got {len(index.manifests)}")
    try:
        digest = Digest(index.manifests[0].digest)
    except KedgeError as error:
        raise BundleError(f"{folder / INDEX}: {error}") from error
    bundle = Bundle(digest, lambda wanted: _blob(folder, wanted))
    if len(_blob(folder, digest)) != index.manifests[0].size:
        raise BundleError(f"{folder / INDEX}: expected the manifest's size; got {index.manifests[0].size}")
    return bundle


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "none"


def _blob(folder: Path, digest: Digest) -> bytes:
    return read_file(folder / "blobs" / "sha256" / digest.hex, BLOB_LIMIT, BundleError)


def verify(folder: Path, bundle: Bundle) -> int:
    """Check every byte of the folder against the digest; return how many bytes that are.

    Raises:
        BundleError: a part is missing or altered, or there is a file that nothing names.
    """
    bundle.verify()
    named = {bundle.digest.hex, Digest(bundle.manifest.config.digest).hex}
    named |= {Digest(x.digest).hex for x in bundle.manifest.layers}
    allowed = {MARK, INDEX, SIGNATURE, *(f"blobs/sha256/{x}" for x in named)}
    total = 0
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if (path.is_dir() and not path.is_symlink()) or inside.startswith(f"{MEASUREMENTS}/"):
            continue
        if inside not in allowed:
            raise BundleError(f"{folder}: nothing in the manifest names {inside!r}")
        total += path.stat().st_size
    return total
