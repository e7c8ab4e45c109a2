"""The power is cut at every single durable operation of an update."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from memory_folder import memory_folder

SUPPORT = Path(__file__).resolve().parent.parent / "support"


def test_a_power_cut_at_any_durable_operation_leaves_a_proven_model_and_the_update_ends(
    tmp_path: Path,
) -> None:
    """Right before each call that changes the disk, the process ends; then the device starts again.

    At once the old model or the new one answers; the update then ends committed, with its links drawn,
    nothing half written left, and the commit in the outbox.
    """
    with memory_folder(tmp_path) as folder:
        done = subprocess.run(
            [sys.executable, str(SUPPORT / "power_cuts.py"), str(folder)],
            check=False,
            capture_output=True,
            env={"PYTHONPATH": str(SUPPORT), "OPENBLAS_NUM_THREADS": "1"},
            timeout=300,
        )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = msgspec.json.decode(done.stdout)
    assert found["failures"] == [], done.stderr.decode()[-3000:]
    assert found["calls"] > 100, "the cuts are where the update touches the disk"
