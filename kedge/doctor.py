"""`kedge doctor`: what this installation has, and the exact command for what it lacks."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from typing import Final

import click
import msgspec

from kedge import __version__

#: Extra to the distributions that it brings and the command that needs it.
PARTS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "onnxruntime": (("onnxruntime",), "kedge agent run, for ONNX models"),
    "tflite": (("tflite-runtime", "ai-edge-litert"), "kedge agent run, for TensorFlow Lite models"),
    "openvino": (("openvino",), "kedge agent run, for OpenVINO models"),
    "compiler": (("onnx", "onnxruntime"), "kedge compile"),
    "server": (("litestar", "sqlmodel", "alembic", "amqtt"), "kedge serve"),
    "postgres": (("psycopg",), "kedge serve --database postgresql://..."),
    "demo": (("mlserver",), "kedge demo"),
}
#: Program to the Debian package that brings it and what it is for.
PROGRAMS: Final = {
    "mosquitto": ("mosquitto", "a broker for production (kedge serve --broker)"),
    "chromium": ("chromium", "the browser tests"),
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked for."""

    name: str
    needed_for: str
    found: str
    install: str


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def findings() -> list[Finding]:
    """Return what is there and what is missing, extras first."""
    found = []
    for extra, (distributions, needed_for) in PARTS.items():
        versions = {name: _version(name) for name in distributions}
        have = all(versions.values())
        found.append(
            Finding(
                name=extra,
                needed_for=needed_for,
                found=", ".join(f"{name} {version}" for name, version in versions.items()) if have else "",
                install="" if have else f"pip install 'kedge[{extra}]'",
            )
        )
    for program, (package, needed_for) in PROGRAMS.items():
        path = shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") or ""
        install = "" if path else f"sudo apt-get install {package}"
        found.append(Finding(name=program, needed_for=needed_for, found=path, install=install))
    return found


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(*, as_json: bool) -> None:
    """Say what this installation has, and what is missing, with the command that installs it."""
    found = findings()
    if as_json:
        facts = {"kedge": __version__, "python": platform.python_version(), "parts": found}
        click.echo(msgspec.json.encode(facts).decode())
        return
    click.echo(
        f"kedge {__version__} on Python {platform.python_version()}, {sys.platform} {platform.machine()}"
    )
    for part in found:
        mark, what = ("ok     ", part.found) if part.found else ("missing", part.install)
        click.echo(f"{mark} {part.name:<12} {what}  ({part.needed_for})")
