"""Makes deltas in a process of its own, with limits on its memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from fleet.errors import DeltaError
from server.ports.delta_maker import FilePair

#: Encoding takes some 30 times a tensor's bytes; the rest of a file little more than its size.
MEMORY: Final = 4 * 1024**3
SECONDS: Final = 600


class DeltaProcess:
    """Implements `server.ports.delta_maker.DeltaMaker`."""

    def __init__(self, memory: int = MEMORY, seconds: int = SECONDS) -> None:
        """Allow so many bytes of memory, and so many seconds for one bundle."""
        self._memory: Final = memory
        self._seconds: Final = seconds

    def make(self, pairs: Sequence[FilePair], scratch: Path) -> None:
        """Write each pair's delta.

        Raises:
            DeltaError: it took more memory or time than allowed, or failed.
        """
        command = [
            sys.executable,
            "-m",
            "server.adapters.delta_program",
            str(self._memory),
            str(self._seconds),
        ]
        # One thread: what a pool of threads reserves would count as memory, and others work here too.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command,
                input=msgspec.json.encode(pairs),
                capture_output=True,
                timeout=self._seconds,
                check=False,
                cwd=scratch,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            raise DeltaError(f"delta: not made within {self._seconds} s") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise DeltaError(f"delta: the process ended with {done.returncode}: {said[:300]}")
