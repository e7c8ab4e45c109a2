"""What a compilation shows a person: progress, the candidates, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from compiler.placement.summary import Placement
from compiler.requests import CompileResult
from compiler.requests import Progress as Step
from compiler.several import Outcome
from fleet.text import printable

#: Columns of a table in a file or a pipe, where nothing says how many there are.
_WIDE: Final = 120


@contextmanager
def progress(label: str) -> Iterator[Callable[[Step], None]]:
    """Show a bar on a terminal, nothing elsewhere; gives the function that moves it."""
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
                description=f"{label} {step.stage}".strip(),
                completed=step.done,
                total=step.total or None,
                detail=step.detail,
            )

        yield tell


def one(result: CompileResult) -> None:
    """Print what came of one target: candidates and warnings to stderr, what counts to stdout."""
    table = Table("candidate", "verdict", "size", "points lost", "agreement", "latency")
    table.columns[0].no_wrap, table.columns[0].overflow = True, "fold"  # whole, as --candidate wants it
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
    console = Console(stderr=True)
    console.print(table, width=None if console.is_terminal else _WIDE)
    if result.cached:
        click.echo(
            "compiled before: all of this is from the cache, latencies too (--no-cache repeats it)", err=True
        )
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
    click.echo(f"placement {_placement(result.placement)}")
    click.echo(f"ran in    {result.parity.ran_in}")
    click.echo(f"bundle    {result.bundle.path}\n          {result.bundle.digest}")


def _placement(found: Placement) -> str:
    memory = found.memory.weights_bytes + found.memory.activations_bytes
    takes = f"{memory:,} bytes of weights and activations"
    if found.accelerated_macs is None:
        formats = ", ".join(f"{count} {name}" for name, count in found.by_precision.items())
        return f"{found.operators} nodes ({formats}), {found.macs:,} multiply-accumulates, {takes}"
    return (
        f"{100 * found.accelerated_macs:.1f} % of {found.macs:,} multiply-accumulates on {found.device} "
        f"({found.basis}), {takes}"
    )


def several(outcomes: Sequence[Outcome]) -> None:
    """Print what came of several targets, a line each."""
    table = Table("target", "candidate", "bytes", "points lost", "agreement", "latency")
    for outcome in outcomes:
        x = outcome.result
        if x is None:
            table.add_row(outcome.target, Text("failed", style="red"))
            continue
        lost, ms = x.accuracy.drop_points, x.latency_ms.compiled
        table.add_row(
            x.target,
            x.chosen.name,
            f"{x.size_bytes.compiled:,}",
            "" if lost is None else f"{lost:+.2f}",
            f"{100 * x.accuracy.agreement:.2f} %",
            "" if ms is None else f"{ms:.3f} ms",
        )
    console = Console()
    console.print(table, width=None if console.is_terminal else _WIDE)
    for outcome in outcomes:
        if outcome.result is not None:
            click.echo(f"{outcome.target:20}{outcome.result.bundle.path}")
        else:
            click.echo(f"{outcome.target}: {printable(outcome.error)}", err=True)
