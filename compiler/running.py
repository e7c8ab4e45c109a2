"""Running a bundle on this machine, on inputs from a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from compiler import backends, limits
from compiler.artifacts import Artifact
from compiler.bundle import archive, golden, layout
from compiler.data import datasets
from compiler.errors import OptionError
from compiler.measuring.evaluate import outputs
from firmware_profiles import registry
from fleet.bundle.manifest import Bundle
from fleet.errors import BundleError


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was run."""

    digest: str
    samples: int
    outputs: dict[str, tuple[int, ...]]
    output: str


def run(folder: Path, source: Path, target: Path) -> RunResult:
    """Verify the bundle, run its model on each sample, and write the outputs as an `.npz`.

    Raises:
        BundleError: the bundle is altered.
        DatasetError: the inputs do not keep the dataset contract.
    """
    bundle = layout.read(folder)
    layout.verify(folder, bundle)
    about = bundle.description
    profile = registry.load(about.target)
    if about.backend not in profile.backends:
        raise BundleError(
            f"{folder}: expected a model made by {', '.join(profile.backends)}; got {about.backend!r}"
        )
    backend = backends.load(about.backend)
    data = datasets.load(source, about.inputs)
    with tempfile.TemporaryDirectory(prefix="kedge-run-") as scratch:
        artifact = _unpacked(bundle, Path(scratch))
        limits.apply(limits.COMPILE_LIMITS)
        backend.vet(artifact)
        found = outputs(backend.load(artifact), data)
    batched = {x.name for x in about.outputs if x.batched}
    arrays = {name: golden.joined(x, batched=name in batched) for name, x in found.items()}
    try:
        target.write_bytes(archive.encode(arrays))
    except OSError as error:
        raise OptionError(f"--output {target}: {error.strerror}") from error
    return RunResult(
        digest=str(bundle.digest),
        samples=len(data),
        outputs={name: x.shape for name, x in arrays.items()},
        output=str(target),
    )


def _unpacked(bundle: Bundle, folder: Path) -> Artifact:
    about = bundle.description
    for name in bundle.model_files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.bytes_of(name))
    return Artifact(
        folder=folder,
        main=about.artifact,
        kind=about.kind,
        runtime=about.requires.runtime,
        inputs=about.inputs,
        outputs=about.outputs,
        facts=about.facts,
    )
