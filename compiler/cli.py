"""`kedge compile`, `targets`, `inspect` and `run`."""

from __future__ import annotations

import math
import re
import signal
import sys
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from compiler import backends, client
from compiler.bundle import layout
from compiler.errors import ModelRefusedError, OptionError
from compiler.limits import GIB, Limits
from compiler.requests import CompileRequest, CompileResult
from compiler.requests import Progress as Step
from firmware_profiles import registry
from fleet.ids import Name
from fleet.options import FiniteRange
from fleet.text import printable

_PATH: Final = click.Path(path_type=Path)


@click.command("compile")
@click.argument("model", type=_PATH)
@click.option("--target", required=True, help="What to compile for; `kedge targets` lists them.")
@click.option(
    "--calibration", type=_PATH, required=True, help="Samples that ranges are calibrated on (.npz)."
)
@click.option(
    "--evaluation", type=_PATH, required=True, help="Samples to measure on, with labels if any (.npz)."
)
@click.option(
    "--max-drop",
    type=FiniteRange(0, 100),
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Accuracy that may be lost against float, in percentage points.",
)
@click.option("--out", type=_PATH, help="Folder of the bundle; default: MODEL-TARGET.bundle here.")
@click.option("--name", default="", help="The model's name in releases; default: the file's.")
@click.option("--precision", default="", help="Only candidates of this precision, such as int8 or float32.")
@click.option("--candidate", default="", help="Only the candidate of this name: repeats an earlier choice.")
@click.option("--classes", default="", help="Names of the classes, separated by commas.")
@click.option("--licence", default="", help="The model's licence, as an SPDX expression.")
@click.option(
    "--memory-limit",
    type=FiniteRange(1, 1024),
    default=16.0,
    show_default=True,
    metavar="GIB",
    help="Address space that compiling may take.",
)
@click.option(
    "--time-limit",
    type=FiniteRange(0.1, 100_000),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Time that compiling may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_command(
    *,
    model: Path,
    target: str,
    calibration: Path,
    evaluation: Path,
    max_drop: float,
    out: Path | None,
    name: str,
    precision: str,
    candidate: str,
    classes: str,
    licence: str,
    memory_limit: float,
    time_limit: float,
    as_json: bool,
) -> None:
    """Quantize and package a model for a target.

    Tries several ways to quantize, keeps the best that holds the accuracy budget, and writes a bundle: the
    model, what proves it, and what was measured.
    """
    backends.require(registry.load(target))
    called = str(Name(name) if name else model_name(model))
    if not model.is_file():
        raise ModelRefusedError(f"{model}: expected an ONNX file; got none")
    request = CompileRequest(
        model=str(model.absolute()),
        target=target,
        calibration=str(calibration.absolute()),
        evaluation=str(evaluation.absolute()),
        max_drop=max_drop,
        out=str((out or Path(f"{called}-{target}.bundle")).absolute()),
        name=called,
        precision=precision,
        candidate=candidate,
        labels=tuple(x.strip() for x in classes.split(",")) if classes else (),
        licence=licence,
        limits=Limits(
            memory_bytes=int(memory_limit * GIB), cpu_s=math.ceil(4 * time_limit), wall_s=time_limit
        ),
    )
    # Without this a worker's files would stay behind.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    result = _with_progress(request)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        _show(result)


def model_name(file: Path) -> Name:
    """Return the name that a model gets from its file.

    Raises:
        OptionError: none can be made of it.
    """
    text = re.sub(r"[^a-z0-9.-]+", "-", file.stem.lower()).strip("-.")[:63]
    if not text:
        raise OptionError(f"--name: expected a name, as none can be made of {file.name!r}")
    return Name(text)


def _with_progress(request: CompileRequest) -> CompileResult:
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("start", total=1, detail="")

        def tell(step: Step) -> None:
            bar.update(
                task,
                description=step.stage,
                completed=step.done,
                total=step.total or None,
                detail=step.detail,
            )

        return client.compile_model(request, tell)


def _show(result: CompileResult) -> None:
    table = Table("candidate", "verdict", "size", "points lost", "agreement", "latency")
    for x in result.candidates:
        table.add_row(
            x.name,
            Text(printable(f"{x.status}: {x.reason}" if x.reason else x.status)),
            "" if x.size_bytes is None else f"{x.size_bytes:,}",
            "" if x.drop_points is None else f"{x.drop_points:+.2f}",
            "" if x.agreement is None else f"{100 * x.agreement:.2f} %",
            "" if x.latency_ms is None else f"{x.latency_ms:.3f} ms",
            style="bold green" if x.status == "chosen" else None,
        )
    Console(stderr=True).print(table)
    for warning in result.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    a, low, high = result.accuracy, *result.accuracy.interval
    if a.compiled is not None and a.original is not None:
        click.echo(
            f"accuracy  {100 * a.compiled:.2f} % (float {100 * a.original:.2f} %, "
            f"{a.drop_points:+.2f} points lost, 95 % interval {low:+.2f} to {high:+.2f})"
        )
    click.echo(f"agreement {100 * a.agreement:.2f} % with float, on {a.samples} samples kept for this")
    size = result.size_bytes
    click.echo(f"size      {size.compiled:,} bytes (float {size.original:,})")
    ours, theirs = result.latency_ms.compiled, result.latency_ms.original
    if ours is not None and theirs is not None:
        click.echo(f"latency   {ours:.3f} ms (float {theirs:.3f} ms)")
    click.echo(f"bundle    {result.bundle.path}\n          {result.bundle.digest}")


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(*, bundle: Path, as_json: bool) -> None:
    """Show what a bundle holds, after verifying every byte."""
    opened = layout.read(bundle)
    size = layout.verify(bundle, opened)
    files = [
        {"path": x.path, "role": x.annotations.get("dev.kedge.role", ""), "size": x.size, "digest": x.digest}
        for x in opened.manifest.layers
    ]
    if as_json:
        facts = {
            "digest": str(opened.digest),
            "verified_bytes": size,
            "files": files,
            "description": msgspec.to_builtins(opened.description),
        }
        click.echo(msgspec.json.encode(facts).decode())
        return
    about = opened.description
    click.echo(
        f"{about.model} for {about.target}: {about.precision}, {about.kind}, runs in {about.requires.runtime}"
    )
    click.echo(f"{opened.digest}, {size:,} bytes verified")
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
