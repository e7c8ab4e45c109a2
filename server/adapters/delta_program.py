"""The process that makes deltas: `python -m server.adapters.delta_program MEMORY SECONDS < pairs.json`."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import msgspec

from fleet.delta import encode, layout
from server.ports.delta_maker import FilePair


def main() -> None:
    """Make the deltas of the pairs on standard input, within limits set before any of them is read."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    for pair in msgspec.json.decode(sys.stdin.buffer.read(), type=list[FilePair]):
        old, new = Path(pair.old).read_bytes(), Path(pair.new).read_bytes()
        old_tensors = layout.tensors(old, _companion(pair.old_companion))
        new_tensors = layout.tensors(new, _companion(pair.new_companion))
        Path(pair.out).write_bytes(encode.encode(old, new, old_tensors, new_tensors))


def _companion(path: str) -> bytes:
    return Path(path).read_bytes() if path else b""


if __name__ == "__main__":
    main()
