"""What a bundle is made of: a CycloneDX 1.6 bill of materials with a model card."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final

import msgspec

from compiler.bundle import report
from compiler.bundle.report import Facts
from fleet.ids import Digest

PATH: Final = "sbom.cdx.json"
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://kedge.dev/sbom")


def encode(facts: Facts, files: Mapping[str, bytes]) -> bytes:
    """Return the bill's bytes; its serial number follows from what it lists.

    Args:
        facts: what the report says.
        files: the model's, by path; one, or several.
    """
    digests = {path: Digest.of(data) for path, data in sorted(files.items())}
    lines = "".join(f"{digest}  {path}\n" for path, digest in digests.items())
    digest = next(iter(digests.values())) if len(digests) == 1 else Digest.of(lines.encode())
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(_NAMESPACE, f"{digest} {facts.about.source_digest}").urn,
        "version": 1,
        "metadata": {"component": _model(facts, digest)},
        "components": [*_files(digests), *_data(facts), *_tools(facts)],
        "dependencies": [
            {
                "ref": "model",
                "dependsOn": [f"data:{name}" for name in sorted(facts.inputs) if name != "model"],
            }
        ],
    }
    return msgspec.json.format(msgspec.json.encode(bill, order="deterministic"), indent=1) + b"\n"


def _files(digests: Mapping[str, Digest]) -> list[dict[str, object]]:
    """Return the files of a model that has several: the model's own hash is that of this list."""
    if len(digests) == 1:
        return []
    return [
        {
            "type": "file",
            "bom-ref": f"file:{path}",
            "name": path,
            "hashes": [{"alg": "SHA-256", "content": digest.hex}],
        }
        for path, digest in digests.items()
    ]


def _model(facts: Facts, digest: Digest) -> dict[str, object]:
    about = facts.about
    component: dict[str, object] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": about.model,
        "description": f"{about.model}, {about.precision}, compiled for {about.target}",
        "hashes": [{"alg": "SHA-256", "content": digest.hex}],
        "pedigree": {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "name": f"{about.model} (float)",
                    "hashes": [{"alg": "SHA-256", "content": Digest(facts.inputs["model"]).hex}],
                }
            ]
        },
        "modelCard": {
            "modelParameters": {
                "datasets": [{"ref": f"data:{name}"} for name in sorted(facts.inputs) if name != "model"],
                "inputs": [{"format": f"{x.datatype} {list(x.shape)}"} for x in about.inputs],
                "outputs": [{"format": f"{x.datatype} {list(x.shape)}"} for x in about.outputs],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(facts)},
        },
    }
    if about.licence:
        component["licenses"] = [{"expression": about.licence}]
    return component


def _metrics(facts: Facts) -> list[dict[str, object]]:
    accuracy = facts.about.accuracy
    if accuracy is None:
        return []
    low, high = accuracy.interval
    metrics: list[dict[str, object]] = [
        {"type": "agreement with float", "value": f"{accuracy.agreement:.6f}"},
    ]
    if accuracy.compiled is not None:
        metrics.append({"type": "accuracy", "value": f"{accuracy.compiled:.6f}"})
        metrics.append(
            {
                "type": "accuracy drop in percentage points",
                "value": f"{accuracy.drop_points:.4f}",
                "confidenceInterval": {"lowerBound": f"{low:.4f}", "upperBound": f"{high:.4f}"},
            }
        )
    return metrics


def _data(facts: Facts) -> list[dict[str, object]]:
    return [
        {
            "type": "data",
            "bom-ref": f"data:{name}",
            "name": name,
            "data": [{"type": "dataset", "name": name}],
            "hashes": [{"alg": "SHA-256", "content": Digest(digest).hex}],
        }
        for name, digest in sorted(facts.inputs.items())
        if name != "model"
    ]


def _tools(facts: Facts) -> list[dict[str, object]]:
    return [
        {
            "type": "library",
            "bom-ref": f"tool:{name}",
            "name": name,
            "version": version,
            "purl": report.purl(name, version),
            "scope": "excluded",
        }
        for name, version in sorted(facts.tools.items())
    ]
