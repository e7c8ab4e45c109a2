"""What lies on disk after each write of an action, for tests that cut the power."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its name from there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def restore(folder: Path, state: dict[str, bytes]) -> Path:
    """Write a state into a new folder, and return that."""
    for name, data in state.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "keys").mkdir(parents=True, exist_ok=True)
    return folder


def states_on_the_way(
    before: dict[str, bytes], after: dict[str, bytes], home: Path
) -> Iterator[dict[str, bytes]]:
    """Yield what lies on disk after each write. Each is atomic, so only whole files are cut off.

    The ledger is written before each file, so it counts as first; a new key waits beside the old one until
    the metadata is written; the rest lies there in the order of writing. What is removed goes last.
    """
    changed = [n for n in after if before.get(n) != after[n]]
    keys = [n for n in changed if n.startswith("keys/") and n.endswith(".pem")]
    marks = [n for n in changed if n.startswith("keys/") and n not in keys]
    files = [n for n in changed if n.startswith("trust/") and n != "trust/versions"]
    files.sort(key=lambda n: (home / n).stat().st_mtime_ns)
    state = before | {"trust/versions": after["trust/versions"]}
    yield dict(state)
    state |= {n.replace(".pem", ".next.pem"): after[n] for n in keys}
    state |= {n: after[n] for n in marks}
    yield dict(state)
    for name in files:
        state[name] = after[name]
        yield dict(state)
    yield after
