"""The demo, with fewer devices: every step from compile to offload holds, and nothing is left running."""

from __future__ import annotations

import contextlib
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from processes import KEDGE

# Looked for, not imported: its stubs collide with tritonclient's in one process.
pytestmark = pytest.mark.skipif(
    find_spec("mlserver") is None, reason="mlserver is not installed: pip install 'kedge[demo]'"
)

STEPS = (
    "compile",
    "serve",
    "release",
    "enrol",
    "roll out",
    "infer",
    "cut the network",
    "reconnect",
    "bad release",
    "console",
)


def running_with(folder: Path) -> list[str]:
    """Return the command lines of the processes that were given this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we looked
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


def test_every_step_of_the_demo_holds(tmp_path: Path) -> None:
    """A newcomer runs the demo once: it tells each step's measurement, exits with 0, and cleans up."""
    work = tmp_path / "work"
    done = subprocess.run(
        [KEDGE, "demo", "--once", "--agents", "2", "--keep", str(work)],
        check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line.removeprefix("✓ ") for line in done.stdout.splitlines() if line.startswith("✓")]
    assert [title for title, line in zip(STEPS, told, strict=True) if not line.startswith(title)] == []
    assert running_with(work) == []


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    done = subprocess.run(
        [KEDGE, "demo", "--once", "--keep", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "expected an empty folder" in done.stderr
    assert "Traceback" not in done.stderr
