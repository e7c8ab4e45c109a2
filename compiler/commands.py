"""`kedge targets`, `inspect`, `run` and `sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from compiler import backends, files
from compiler.bundle import layout, signature
from compiler.errors import OptionError
from firmware_profiles import registry
from fleet.text import printable

_PATH: Final = click.Path(path_type=Path)
#: No password is longer.
_SMALL: Final = 4096


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def targets(*, as_json: bool) -> None:
    """List the targets that models can be compiled for."""
    profiles = [registry.load(name) for name in registry.names()]
    available = backends.names()
    if as_json:
        rows = [{**msgspec.to_builtins(x), "available": x.backends[0] in available} for x in profiles]
        click.echo(msgspec.json.encode({"targets": rows}).decode())
        return
    for x in profiles:
        note = "" if x.backends[0] in available else f" (not yet: needs the backend {x.backends[0]!r})"
        click.echo(f"{x.name:20}{x.description}{note}")


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--public-key", type=_PATH, help="Check the bundle's signature with this key (PEM) as well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(*, bundle: Path, public_key: Path | None, as_json: bool) -> None:
    """Show what a bundle holds, after verifying every byte."""
    opened = layout.read(bundle)
    size = layout.verify(bundle, opened)
    if public_key:
        signature.verify(bundle, public_key)
    files = [
        {"path": x.path, "role": x.annotations.get("dev.kedge.role", ""), "size": x.size, "digest": x.digest}
        for x in opened.manifest.layers
    ]
    if as_json:
        facts = {
            "digest": str(opened.digest),
            "verified_bytes": size,
            "signature": _signature(bundle, public_key),
            "files": files,
            "description": msgspec.to_builtins(opened.description),
        }
        click.echo(msgspec.json.encode(facts).decode())
        return
    about = opened.description
    click.echo(
        f"{about.model} for {about.target}: {about.precision}, {about.kind}, runs in {about.requires.runtime}"
    )
    for name, value in sorted(about.facts.items()):
        click.echo(printable(f"{name} = {value}"))
    click.echo(f"{opened.digest}, {size:,} bytes verified, signature: {_signature(bundle, public_key)}")
    table = Table("file", "role", "bytes", "digest")
    for x in files:
        table.add_row(str(x["path"]), str(x["role"]), f"{x['size']:,}", str(x["digest"])[:19])
    Console(soft_wrap=True).print(table)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--input", "input_", type=_PATH, required=True, help="Inputs (.npz, as for calibration).")
@click.option("--output", type=_PATH, required=True, help="Where the outputs go (.npz).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(*, bundle: Path, input_: Path, output: Path, as_json: bool) -> None:
    """Run a bundle on inputs from a file, in the runtime that its device uses."""
    from compiler import running

    result = running.run(bundle, input_, output)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        click.echo(f"{result.samples} samples: {printable(', '.join(result.outputs))} -> {result.output}")


def _signature(bundle: Path, public_key: Path | None) -> str:
    if not (bundle / layout.SIGNATURE).is_file():
        return "none"
    return "verified" if public_key else "not checked"


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--key", type=_PATH, required=True, help="A private key on P-256, P-384 or P-521 (PEM).")
@click.option("--password-file", type=_PATH, help="A file that holds the key's password.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sign(*, bundle: Path, key: Path, password_file: Path | None, as_json: bool) -> None:
    """Sign a bundle as OpenSSF Model Signing has it, for people who never saw this fleet's keys."""
    password = files.read(password_file, _SMALL, OptionError).rstrip(b"\n") if password_file else None
    path = signature.sign(bundle, key, password)
    if as_json:
        click.echo(msgspec.json.encode({"bundle": str(bundle), "signature": str(path)}).decode())
    else:
        click.echo(f"signed    {path}")
