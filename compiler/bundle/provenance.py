"""Where a bundle comes from: an in-toto statement with SLSA provenance.

in-toto attestation framework, Statement v1; predicate https://slsa.dev/provenance/v1. It names no builder
instance and no time: what is true of every build from these inputs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from compiler.bundle import report
from compiler.bundle.report import Facts
from compiler.search.verdicts import CRASHED, NOT_TRIED
from fleet.ids import Digest

PATH: Final = "provenance.json"
BUILD_TYPE: Final = "https://kedge.dev/compile/v1"


def encode(facts: Facts, subjects: Mapping[str, Digest]) -> bytes:
    """Return the statement's bytes.

    Args:
        facts: of the report.
        subjects: the bundle's other files, whose digests the statement is about.
    """
    version = {"kedge": facts.about.compiler.split()[-1]}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path, "digest": {"sha256": digest.hex}} for path, digest in subjects.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": _definition(facts),
            "runDetails": {"builder": {"id": BUILD_TYPE, "version": version}},
        },
    }
    return msgspec.json.format(msgspec.json.encode(statement, order="deterministic"), indent=1) + b"\n"


def _definition(facts: Facts) -> dict[str, object]:
    """Return what the build was asked for, what it decided by itself, and what it was made of."""
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "model": facts.about.model,
            "target": facts.profile.name,
            "maxDrop": facts.max_drop,
            "precision": facts.asked_precision,
            "candidate": facts.asked_candidate,
            "classes": list(facts.about.labels),
            "licence": facts.about.licence,
        },
        # Looked at on the second half in this order; the last one is the bundle's.
        "internalParameters": {
            "confirmed": list(facts.confirmed),
            "crashed": {x.name: x.reason for x in facts.verdicts if x.status == CRASHED},
            "untried": [x.name for x in facts.verdicts if x.status == NOT_TRIED],
        },
        "resolvedDependencies": [
            *(
                {"name": name, "digest": {"sha256": Digest(x).hex}}
                for name, x in sorted(facts.inputs.items())
            ),
            *(
                {"name": name, "uri": report.purl(name, version)}
                for name, version in sorted(facts.tools.items())
            ),
        ],
    }
