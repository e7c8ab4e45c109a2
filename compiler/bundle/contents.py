"""Everything that goes into a bundle. No clock, no machine's name in it: same in, same out."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from compiler.artifacts import Artifact
from compiler.bundle import golden, layout, model_config, provenance, report, sbom
from compiler.bundle.data import DataFacts
from compiler.bundle.page import render
from compiler.candidates import Candidate
from compiler.measuring.parity import Parity
from compiler.measuring.sensitivity import Sensitivity
from compiler.placement.summary import Placement
from compiler.requests import CompileRequest, Sizes, Verdict
from firmware_profiles.profile import Profile
from fleet.bundle import description, manifest
from fleet.bundle.description import Accuracy, BundleDescription, OffloadCalibration, Requirements, TensorSpec
from fleet.bundle.manifest import Role
from fleet.ids import Digest
from fleet.telemetry import baseline

#: A loaded model takes about its weights twice (packed for the kernels), and its activations.
_LOADED: Final = 2
_RUNTIME_BYTES: Final = 48 * 1024**2


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What compiling has found out.

    Attributes:
        source_digest, calibration_digest, evaluation_digest: of the files that went in.
        artifact: the compiled model.
        tools: name to version.
        confirmed: candidates that were looked at on the report half; the last one was chosen.
        firmware: what the artifact needs beyond the profile.
    """

    request: CompileRequest
    profile: Profile
    candidate: Candidate
    source_digest: Digest
    calibration_digest: Digest
    evaluation_digest: Digest
    artifact: Artifact
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: golden.GoldenFiles
    accuracy: Accuracy
    offload: OffloadCalibration | None
    baseline: bytes | None
    sizes: Sizes
    verdicts: tuple[Verdict, ...]
    confirmed: tuple[str, ...]
    placement: Placement
    parity: Parity
    sensitivity: Sensitivity | None
    data: DataFacts
    warnings: tuple[str, ...]
    tools: dict[str, str]
    firmware: dict[str, str]


def compiler_version() -> str:
    """Return the compiler's name and version."""
    return f"kedge {metadata.version('kedge')}"


def describe(found: Finding) -> BundleDescription:
    """Return the bundle's description."""
    return BundleDescription(
        model=found.request.name,
        target=found.profile.name,
        kind=found.artifact.kind,
        artifact=found.artifact.main,
        precision=found.candidate.precision,
        inputs=found.inputs,
        outputs=found.outputs,
        requires=Requirements(
            runtime=found.artifact.runtime,
            firmware={**_firmware(found), **found.firmware},
            memory_bytes=_RUNTIME_BYTES + _LOADED * found.artifact.size(),
        ),
        golden=found.golden.description,
        accuracy=found.accuracy,
        offload=found.offload,
        baseline=baseline.PATH if found.baseline else "",
        labels=found.request.labels,
        licence=found.request.licence,
        source_digest=str(found.source_digest),
        compiler=compiler_version(),
        backend=found.candidate.backend,
        facts=found.artifact.facts,
    )


def _firmware(found: Finding) -> dict[str, str]:
    """Return what the profile asks of a device, without the runtimes that others of its bundles need."""
    others = set(found.profile.backends) - {found.artifact.runtime}
    return {x.part: x.versions for x in found.profile.firmware if x.part not in others}


def facts(found: Finding) -> report.Facts:
    """Return what the report in the bundle says: the same for the same inputs, so without latencies."""
    return report.Facts(
        about=describe(found),
        profile=found.profile,
        candidate=found.candidate,
        sizes=found.sizes,
        verdicts=tuple(map(report.untimed, found.verdicts)),
        placement=found.placement,
        parity=found.parity,
        sensitivity=found.sensitivity,
        data=found.data,
        warnings=found.warnings,
        tools=found.tools,
        inputs={
            "model": str(found.source_digest),
            "calibration": str(found.calibration_digest),
            "evaluation": str(found.evaluation_digest),
        },
        max_drop=found.request.max_drop,
        asked_precision=found.request.precision,
        asked_candidate=found.request.candidate,
        confirmed=found.confirmed,
    )


def write(found: Finding, folder: Path) -> Digest:
    """Write the bundle and return its digest."""
    about = describe(found)
    files: dict[str, tuple[Role, bytes]] = {
        manifest.DESCRIPTION_PATH: (Role.DESCRIPTION, description.encode(about)),
        golden.INPUTS: (Role.GOLDEN, found.golden.inputs),
        golden.OUTPUTS: (Role.GOLDEN, found.golden.outputs),
    }
    model = {path: file.read_bytes() for path, file in found.artifact.files().items()}
    files.update({path: (Role.MODEL, data) for path, data in model.items()})
    if found.baseline:
        files[baseline.PATH] = (Role.BASELINE, found.baseline)
    about_it = facts(found)
    files[report.JSON] = (Role.REPORT, report.as_json(about_it))
    files[report.HTML] = (Role.REPORT, render.as_html(about_it))
    files[sbom.PATH] = (Role.SBOM, sbom.encode(about_it, model))
    subjects = {path: Digest.of(data) for path, (_, data) in sorted(files.items())}
    files[provenance.PATH] = (Role.PROVENANCE, provenance.encode(about_it, subjects))
    config = model_config.encode(about, found.candidate, [data for _, data in _in_order(files)])
    return layout.write(folder, files, config, {"org.opencontainers.image.title": about.model})


def _in_order(files: dict[str, tuple[Role, bytes]]) -> list[tuple[Role, bytes]]:
    return [files[path] for path in sorted(files)]
