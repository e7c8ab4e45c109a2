"""The power goes while a kit is imported: the next import ends well, and nothing was installed half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from memory_folder import memory_folder

SUPPORT = Path(__file__).resolve().parents[1] / "support"
#: Every operation takes half a minute (`kit_cuts.py FOLDER`); a number that shares no factor with its loops.
STEP = 7


def test_an_import_survives_a_power_cut_anywhere(tmp_path: Path) -> None:
    """Each cut comes right before an open, write, fsync, rename, unlink, mkdir or rmdir."""
    with memory_folder(tmp_path) as folder:
        done = subprocess.run(
            [sys.executable, str(SUPPORT / "kit_cuts.py"), str(folder), str(STEP)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["calls"] > 100
    assert told["failures"] == [], done.stderr[-3000:]
