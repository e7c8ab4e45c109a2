"""`kedge compile`."""

from __future__ import annotations

import math
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import click
import msgspec
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from compiler import backends, cache, client, earlier, rebuild, several, show
from compiler.errors import CompileError, ModelRefusedError, OptionError
from compiler.limits import GIB, Limits
from compiler.requests import CompileRequest, CompileResult
from firmware_profiles import registry
from fleet.ids import Name
from fleet.options import FiniteRange
from fleet.text import printable

_PATH: Final = click.Path(path_type=Path)


@click.command("compile")
@click.argument("model", type=_PATH)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="What to compile for: a name of `kedge targets`, or a pattern such as 'jetson-*'; may be repeated.",
)
@click.option("--calibration", type=_PATH, help="Samples that ranges are calibrated on (.npz).")
@click.option("--evaluation", type=_PATH, help="Samples to measure on, with labels if any (.npz).")
@click.option(
    "--max-drop",
    type=FiniteRange(0, 100),
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Accuracy that may be lost against float, in percentage points.",
)
@click.option(
    "--out",
    type=_PATH,
    help="Folder of the bundle; of the bundles, for several targets. Default: MODEL-TARGET.bundle here.",
)
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
@click.option(
    "--time-budget",
    type=FiniteRange(0.1, 100_000),
    metavar="SECONDS",
    help="Time for trying candidates: then the best so far is taken. Default: until all are tried.",
)
@click.option(
    "--verify",
    type=_PATH,
    metavar="BUNDLE",
    help="Build this bundle again from the same model and data, and compare every byte.",
)
@click.option("--no-cache", is_flag=True, help="Do everything again, also what was done before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_command(
    *,
    model: Path,
    targets: tuple[str, ...],
    calibration: Path | None,
    evaluation: Path | None,
    max_drop: float,
    out: Path | None,
    name: str,
    precision: str,
    candidate: str,
    classes: str,
    licence: str,
    memory_limit: float,
    time_limit: float,
    time_budget: float | None,
    verify: Path | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Quantize and package a model for a target.

    MODEL is an ONNX file; external data lie beside it. Tries several ways to quantize, keeps the best that
    holds the accuracy budget, and writes a bundle: the model, what proves it, and what was measured.
    """
    names = several.expand(targets)
    if bool(names) == (verify is not None):
        raise OptionError(f"expected --target or --verify; got {'both' if verify else 'neither'}")
    if len(names) == 1:
        backends.require(registry.load(names[0]))
    called = str(Name(name) if name else model_name(model))
    if not model.is_file():
        raise ModelRefusedError(f"{model}: expected an ONNX file; got none")
    request = CompileRequest(
        model=str(model.absolute()),
        target="",
        calibration=_absolute(calibration),
        evaluation=_absolute(evaluation),
        max_drop=max_drop,
        out="",
        name=called,
        precision=precision,
        candidate=candidate,
        labels=tuple(x.strip() for x in classes.split(",")) if classes else (),
        licence=_licence(licence),
        limits=Limits(
            memory_bytes=int(memory_limit * GIB), cpu_s=math.ceil(4 * time_limit), wall_s=time_limit
        ),
        time_budget_s=time_budget or 0.0,
        cache="" if no_cache else _cache(),
    )
    # Without this a worker's files would stay behind.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if verify is not None:
        _verify(verify, request, as_json=as_json)
    elif len(names) == 1 and not several.is_pattern(targets):
        _one(_for(request, names[0], out or Path(f"{called}-{names[0]}.bundle")), as_json=as_json)
    else:
        _several(request, names, out or Path(), as_json=as_json)


def _for(request: CompileRequest, target: str, out: Path) -> CompileRequest:
    return msgspec.structs.replace(request, target=target, out=str(out.absolute()))


def _compiled(request: CompileRequest, label: str = "") -> CompileResult:
    with show.progress(label) as tell:
        found = earlier.find(request)
        if found is None:
            client.prepare(registry.load(request.target), tell)
            found = client.compile_model(request, tell)
            earlier.keep(request, found)
    return found


def _one(request: CompileRequest, *, as_json: bool) -> None:
    result = _compiled(request)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        show.one(result)


def _several(request: CompileRequest, names: list[str], folder: Path, *, as_json: bool) -> None:
    def compile_for(target: str) -> CompileResult:
        try:
            return _compiled(_for(request, target, folder / f"{request.name}-{target}.bundle"), target)
        except client.WorkerBugError as error:
            click.echo(printable(str(error)), err=True)
            raise CompileError("a bug in Kedge; its traceback stands above") from error

    outcomes = several.each(names, compile_for)
    if as_json:
        click.echo(msgspec.json.encode({"targets": outcomes}).decode())
    else:
        show.several(outcomes)
    failed = [x.target for x in outcomes if x.result is None]
    if failed:
        raise CompileError(f"{len(failed)} of {len(outcomes)} targets failed: {', '.join(failed)}")


def _verify(bundle: Path, request: CompileRequest, *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="kedge-verify-") as folder:
        again = msgspec.structs.replace(request, out=str(Path(folder) / "again.bundle"), cache="")
        found = rebuild.rebuild(bundle, again, _compiled)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    elif found.same:
        click.echo(f"same      {found.digest}")
    if not found.same:
        tools = "; ".join(
            f"{x} {then or 'none'} then, {now or 'none'} here" for x, (then, now) in found.tools.items()
        )
        raise CompileError(
            f"{bundle}: built again it is {found.rebuilt}; not the same: {', '.join(found.different)}"
            + (f" (tools: {tools})" if tools else "")
        )


def _licence(text: str) -> str:
    """Return an SPDX expression in its canonical form, "" for none: bills of materials take no other."""
    try:
        return str(canonicalize_license_expression(text)) if text else ""
    except InvalidLicenseExpression as error:
        raise OptionError(
            f"--licence: expected an SPDX expression, such as Apache-2.0 or LicenseRef-Acme; got {text!r}"
        ) from error


def _cache() -> str:
    """Return where the cache is, "" where somebody else might put bundles into it."""
    place = cache.place()
    why = cache.doubt(place)
    if why:
        click.echo(printable(f"warning: the cache is not used: {why}"), err=True)
    return "" if why else str(place)


def _absolute(path: Path | None) -> str:
    """Return a path that holds in any folder; the worker says what is missing, as it knows the model."""
    return str(path.absolute()) if path else ""


def model_name(file: Path) -> Name:
    """Return the name that a model gets from its file.

    Raises:
        OptionError: none can be made of it.
    """
    text = re.sub(r"[^a-z0-9.-]+", "-", file.stem.lower()).strip("-.")[:63]
    if not text:
        raise OptionError(f"--name: expected a name, as none can be made of {file.name!r}")
    return Name(text)
