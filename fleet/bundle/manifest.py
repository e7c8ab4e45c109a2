"""The OCI manifest of a bundle, and how its files hang together.

A bundle is an OCI image layout (OCI image specification 1.1) whose media types follow the CNCF ModelPack
specification, so that `oras`, KitOps and registries can carry it. The digest of the manifest's bytes is the
bundle's identity: it covers every file. A file's path stands in ModelPack's `filepath` annotation, and what
a device needs of it in ours.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import msgspec

from fleet.bundle import description
from fleet.errors import BundleError, KedgeError
from fleet.ids import Digest, plain

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
FILEPATH: Final = "org.cncf.model.filepath"
ROLE: Final = "dev.kedge.role"
DESCRIPTION_PATH: Final = "kedge/bundle.json"
#: No manifest is larger: it travels as one chunk.
MANIFEST_LIMIT: Final = 128 * 1024
#: Bytes of a file's path: no file system has names of more than 255.
PATH_LIMIT: Final = 240


class Role(str, enum.Enum):
    """What a file is for. A device fetches only those in `DEVICE_ROLES`."""

    DESCRIPTION = "description"
    MODEL = "model"
    GOLDEN = "golden"
    BASELINE = "baseline"
    REPORT = "report"
    SBOM = "sbom"
    PROVENANCE = "provenance"
    DOC = "doc"


DEVICE_ROLES: Final = frozenset({Role.DESCRIPTION, Role.MODEL, Role.GOLDEN, Role.BASELINE})

#: ModelPack media type by role.
LAYER_TYPES: Final = {
    Role.MODEL: "application/vnd.cncf.model.weight.v1.raw",
    Role.DESCRIPTION: "application/vnd.cncf.model.weight.config.v1.raw",
    Role.BASELINE: "application/vnd.cncf.model.weight.config.v1.raw",
    Role.GOLDEN: "application/vnd.cncf.model.dataset.v1.raw",
    Role.REPORT: "application/vnd.cncf.model.doc.v1.raw",
    Role.SBOM: "application/vnd.cncf.model.doc.v1.raw",
    Role.PROVENANCE: "application/vnd.cncf.model.doc.v1.raw",
    Role.DOC: "application/vnd.cncf.model.doc.v1.raw",
}


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """OCI content descriptor."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}

    @property
    def path(self) -> str:
        """The file's path in the bundle, "" when it has none."""
        return self.annotations.get(FILEPATH, "")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """OCI image manifest."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}

    def file(self, path: str) -> Descriptor:
        """Return the layer that holds the file.

        Raises:
            BundleError: there is none.
        """
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise BundleError(f"bundle: expected a file {path!r}, got {', '.join(x.path for x in self.layers)}")

    def of_role(self, role: Role) -> dict[str, Digest]:
        """Return the files of a role, path to digest."""
        return {x.path: Digest(x.digest) for x in self.layers if x.annotations.get(ROLE) == role.value}

    def for_device(self) -> tuple[Descriptor, ...]:
        """Return the layers that a device needs."""
        return tuple(x for x in self.layers if x.annotations.get(ROLE) in {r.value for r in DEVICE_ROLES})


def layer(role: Role, path: str, data: bytes) -> Descriptor:
    """Return the descriptor of one file."""
    return Descriptor(
        media_type=LAYER_TYPES[role],
        digest=Digest.of(data),
        size=len(data),
        annotations={FILEPATH: path, ROLE: role.value},
    )


def encode(manifest: Manifest) -> bytes:
    """Return the manifest's bytes: the same manifest always gives the same bytes.

    Raises:
        BundleError: longer than `MANIFEST_LIMIT`.
    """
    data = msgspec.json.encode(manifest, order="deterministic", enc_hook=plain)
    if len(data) > MANIFEST_LIMIT:
        raise BundleError(f"manifest: expected at most {MANIFEST_LIMIT} bytes, got {len(data)}")
    return data


def decode(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        BundleError: malformed, too long, or with unsafe or repeated file paths.
    """
    if len(data) > MANIFEST_LIMIT:
        raise BundleError(f"manifest: expected at most {MANIFEST_LIMIT} bytes, got {len(data)}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
        for part in (manifest.config, *manifest.layers):
            Digest(part.digest)
    except (ValueError, KedgeError, RecursionError) as error:
        raise BundleError(f"manifest: {error}") from error
    if manifest.artifact_type != ARTIFACT_TYPE:
        raise BundleError(f"manifest: expected artifact type {ARTIFACT_TYPE}, got {manifest.artifact_type!r}")
    _check_paths([x.path for x in manifest.layers])
    if any(x.size < 0 for x in (manifest.config, *manifest.layers)):
        raise BundleError("manifest: a size is negative")
    return manifest


def _check_paths(paths: list[str]) -> None:
    """Check that files of these paths can lie beside each other in any folder, and nowhere else."""
    for path in paths:
        parts = path.split("/")
        if not path.isprintable() or "\\" in path or {"", ".", ".."} & set(parts):
            raise BundleError(f"manifest: expected a relative file path, got {path[:PATH_LIMIT]!r}")
        if len(path.encode()) > PATH_LIMIT:
            raise BundleError(
                f"manifest: expected paths of at most {PATH_LIMIT} bytes, got {len(path.encode())}"
            )
    if len(set(paths)) != len(paths):
        raise BundleError("manifest: a file path stands twice")
    folders = {"/".join(x.split("/")[:i]) for x in paths for i in range(1, x.count("/") + 1)}
    if both := sorted(folders & set(paths)):
        raise BundleError(f"manifest: expected a file or a folder at {both[0]!r}, got both")


class Bundle:
    """A bundle that is read through a function from digest to bytes, each checked on the way."""

    def __init__(self, digest: Digest, read: Callable[[Digest], bytes]) -> None:
        """Read manifest and description.

        Raises:
            BundleError: a part is missing, altered or malformed.
        """
        self.digest: Final = digest
        self._read: Final = read
        self.manifest: Final = decode(self._checked(digest))
        self.description: Final = description.decode(self.bytes_of(DESCRIPTION_PATH))

    def bytes_of(self, path: str) -> bytes:
        """Return a file's bytes.

        Raises:
            BundleError: there is no such file, or its bytes are not the manifest's.
        """
        part = self.manifest.file(path)
        data = self._checked(Digest(part.digest))
        if len(data) != part.size:
            raise BundleError(f"{path}: expected {part.size} bytes, got {len(data)}")
        return data

    def model_files(self) -> dict[str, Digest]:
        """Return the files of the model by path.

        Raises:
            BundleError: what the runtime shall load is not among them.
        """
        main, parts = self.description.artifact, self.manifest.of_role(Role.MODEL)
        if not any(path == main or path.startswith(f"{main}/") for path in parts):
            raise BundleError(f"bundle: expected an artifact {main!r}, got {', '.join(parts) or 'none'}")
        return parts

    def verify(self) -> None:
        """Check every file of the bundle.

        Raises:
            BundleError: a part is missing, altered or malformed.
        """
        self._checked(Digest(self.manifest.config.digest))
        for part in self.manifest.layers:
            self.bytes_of(part.path)

    def _checked(self, digest: Digest) -> bytes:
        data = self._read(digest)
        got = Digest.of(data)
        if got != digest:
            raise BundleError(f"blob: expected {digest}, got {got}")
        return data
