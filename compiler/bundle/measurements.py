"""What depends on this machine on this day: kept beside the bundle's files, outside its digest."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import msgspec

from compiler.bundle import contents, report
from compiler.bundle.contents import Finding
from compiler.bundle.page import render

LATENCY: Final = "latency.json"


def write(found: Finding, warnings: tuple[str, ...], folder: Path) -> None:
    """Write latencies as JSON, and the report with them."""
    folder.mkdir()
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    latencies = {x.name: x.latency_ms for x in found.verdicts if x.latency_ms is not None}
    body = {"chosen": found.candidate.name, "latency_ms": latencies, "warnings": warnings, "on": machine}
    data = msgspec.json.format(msgspec.json.encode(body, order="deterministic"), indent=1)
    (folder / LATENCY).write_bytes(data + b"\n")
    note = (
        f"Latency: median ms for one sample, one thread, interleaved, on this {platform.machine()} machine."
    )
    facts = msgspec.structs.replace(
        contents.facts(found),
        verdicts=found.verdicts,
        warnings=(*found.warnings, *warnings),
        latency_note=note,
    )
    (folder / report.HTML).write_bytes(render.as_html(facts))
