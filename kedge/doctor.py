"""`kedge doctor`: what this installation has, and the exact command for what it lacks."""

from __future__ import annotations

import platform
import shutil
import sys
import textwrap
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import click
import msgspec
from packaging.requirements import Requirement

from compiler import toolchains
from fleet.checks import Check
from fleet.text import printable
from kedge import __version__

#: Extra to what needs it; what an extra brings is written in the distribution's own metadata.
EXTRAS: Final = {
    "onnxruntime": "kedge agent run, for ONNX models",
    "tflite": "kedge agent run, for TensorFlow Lite models",
    "openvino": "kedge agent run, for OpenVINO models",
    "coreml": "kedge agent run, for Core ML models, on macOS",
    "compiler": "kedge compile",
    "compiler-coreml": "kedge compile, for Apple's targets",
    "compiler-edgetpu": "kedge compile, for the Edge TPU",
    "compiler-openvino": "kedge compile, for OpenVINO's candidates and targets",
    "signing": "kedge sign",
    "server": "kedge serve",
    "postgres": "kedge serve --database postgresql://...",
    "object-store": "kedge serve --blobs s3://...",
    "pkcs11": "kedge keys, and kedge agent, with a key in hardware",
    "demo": "kedge demo",
}
#: Program to the command that brings it and what it is for.
PROGRAMS: Final = {
    "mosquitto": ("sudo apt-get install mosquitto", "a broker for production (kedge serve --broker)"),
    "chromium": ("sudo apt-get install chromium", "the browser tests"),
    "edgetpu_compiler": (
        "sudo apt-get install edgetpu-compiler, from Coral's package source",
        "kedge compile, to place models on the Edge TPU",
    ),
    "trtexec": (
        "sudo apt-get install nvidia-jetpack, on a Jetson",
        "kedge agent run, to build TensorRT engines on a Jetson",
    ),
}
_PLACES: Final = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/src/tensorrt/bin"
_WIDTH: Final = 90
#: Where an agent and a server keep their things unless they are told otherwise.
_STATE: Final = Path("/var/lib/kedge-agent")
_DATA: Final = Path("kedge-data")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked for.

    Attributes:
        kind: how it is installed: an extra of this distribution, a tool-chain's environment, a program.
        found: versions or path, "" where it is missing.
        install: the command for what is missing.
    """

    kind: Literal["extra", "toolchain", "program"]
    name: str
    needed_for: str
    found: str
    install: str


def findings() -> list[Finding]:
    """Return what is there and what is missing: extras, then tool-chains, then programs."""
    programs = [_program(name, *about) for name, about in PROGRAMS.items()]
    return [*(_extra(*x) for x in EXTRAS.items()), *(_toolchain(x) for x in toolchains.status()), *programs]


def brought_by(extra: str) -> list[str]:
    """Return the distributions that an extra brings on this machine."""
    wanted = [Requirement(x) for x in metadata.requires("kedge") or ()]
    optional = [x for x in wanted if x.marker and not x.marker.evaluate({"extra": ""})]
    return list(dict.fromkeys(x.name for x in optional if x.marker and x.marker.evaluate({"extra": extra})))


def _extra(extra: str, needed_for: str) -> Finding:
    versions = {name: _version(name) for name in brought_by(extra)}
    have = bool(versions) and all(versions.values())
    return Finding(
        kind="extra",
        name=extra,
        needed_for=needed_for,
        found=", ".join(f"{name} {version}" for name, version in versions.items()) if have else "",
        install="" if have else f"pip install 'kedge[{extra}]'",
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _toolchain(status: toolchains.Status) -> Finding:
    return Finding(
        kind="toolchain",
        name=status.name,
        needed_for=f"kedge compile; {status.purpose}",
        found=", ".join(f"{name} {version}" for name, version in status.versions.items()),
        install=status.command,
    )


def _program(name: str, install: str, needed_for: str) -> Finding:
    path = shutil.which(name) or shutil.which(name, path=_PLACES) or ""
    return Finding(
        kind="program", name=name, needed_for=needed_for, found=path, install="" if path else install
    )


@click.command()
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    envvar="KEDGE_STATE",
    help="Look at an agent's state folder too. [default: /var/lib/kedge-agent, where there is one]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Look at a server's data folder too. [default: ./kedge-data, where there is one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(*, state: Path | None, data: Path | None, as_json: bool) -> int:
    """Say what this installation has and lacks, and how the device or server on this machine is.

    On a device: identity, certificate, trust metadata, clock, and whether each model's files are whole. On a
    server: the metadata as a device would verify it, private keys, certificate authority, and the audit log.
    Nothing is changed. Exits with 2 where something does not work.
    """
    found = findings()
    looked = {"device": _device(state), "server": _server(data)}
    if as_json:
        facts = {"kedge": __version__, "python": platform.python_version(), "parts": found, **looked}
        click.echo(msgspec.json.encode(facts).decode())
    else:
        click.echo(
            f"kedge {__version__} on Python {platform.python_version()}, {sys.platform} {platform.machine()}"
        )
        _print_parts(found)
        for place, checks in looked.items():
            _print_checks(place, checks)
    return 2 if any(check.health == "fail" for checks in looked.values() for check in checks) else 0


def _device(state: Path | None) -> list[Check]:
    if state is None and not _STATE.is_dir():
        return []
    from device_agent import checkup
    from device_agent.adapters.state import StateFolder

    return checkup.checks(StateFolder(state or _STATE), datetime.now(timezone.utc))


def _server(data: Path | None) -> list[Check]:
    if data is None and not _DATA.is_dir():
        return []
    from server import checkup
    from server.settings import Settings

    return checkup.checks(Settings(data=data or _DATA), datetime.now(timezone.utc))


def _print_parts(found: list[Finding]) -> None:
    width = max(len(part.name) for part in found)
    for part in found:
        mark, what = ("ok     ", part.found) if part.found else ("missing", part.install)
        short = textwrap.shorten(what, _WIDTH, placeholder=" ...") if part.found else what
        click.echo(f"{mark} {part.name:<{width}} {short}  ({part.needed_for})")


def _print_checks(place: str, checks: list[Check]) -> None:
    if not checks:
        return
    click.echo(f"\nthis {place}")
    width = max(len(check.name) for check in checks)
    for check in checks:
        action = f"  -> {check.action}" if check.action else ""
        click.echo(f"{check.health:<7} {check.name:<{width}} {printable(check.found)}{action}")
