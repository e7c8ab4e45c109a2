"""The command `kedge demo`."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Final

import click

from fleet.errors import MissingExtraError
from kedge.demo.errors import DemoError

#: The examples in a checkout, and in an installed wheel.
EXAMPLES: Final = (
    Path(__file__).parents[2] / "examples" / "digits",
    Path(__file__).parent / "examples" / "digits",
)


@click.command()
@click.option("--once", is_flag=True, help="Stop everything after the last step, instead of serving on.")
@click.option("--agents", type=click.IntRange(2, 20), default=5, show_default=True, help="How many devices.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work in this folder, and leave it; without it, a temporary one.",
)
def demo(*, once: bool, agents: int, keep: Path | None) -> None:
    """Run the main job on this machine, from compile to offload.

    Exits with 0 only if every step held. Nothing leaves this machine: every program listens on loopback.
    """
    if find_spec("mlserver") is None:  # not imported: it brings stubs that collide with tritonclient's
        raise MissingExtraError("kedge demo", "demo")
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="kedge-demo-") as temporary:
        _tell(keep or Path(temporary), agents, once=once)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _examples() -> Path:
    for folder in EXAMPLES:
        if folder.is_dir():
            return folder
    raise DemoError(f"the example is missing: expected {EXAMPLES[0]}")


def _tell(work: Path, agents: int, *, once: bool) -> None:
    from rich.console import Console

    from kedge.demo.story import Story

    console = Console()
    if work.exists() and any(work.iterdir()):
        raise DemoError(f"{work}: expected an empty folder")
    story = Story(work, _examples(), agents)
    started = time.monotonic()
    try:
        for title, deed in story.steps():
            step = time.monotonic()
            with console.status(title):
                measured = deed()
            console.print(
                f"[green]✓[/] [bold]{title:<16}[/] {measured} [dim]{time.monotonic() - step:.1f} s[/]"
            )
        console.print(f"every step held, in {time.monotonic() - started:.0f} s")
        if not once:
            console.print(
                f"console: {story.url}  user: admin  password: {story.password}\nCtrl-C stops it all"
            )
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        story.programs.stop_all()
