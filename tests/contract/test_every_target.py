"""Every profile through every backend that this machine has: a small model, each number format.

What all of them owe: an artifact that loads where it is said to run, answers like float, names what it needs,
places every node, and is the same again for the same inputs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from compiler import backends
from firmware_profiles import registry

CASES = [(name, backend) for name in registry.names() for backend in registry.load(name).backends]
SCRIPT = Path(__file__).resolve().parents[1] / "support" / "backend_contract.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run each backend in a process of its own, as tool-chains warn, print and hold on to memory."""
    used = sorted({backend for _, backend in CASES} & backends.names())
    folders = {x: tmp_path_factory.mktemp(x) for x in used}
    with ThreadPoolExecutor(max_workers=2) as pool:
        each = pool.map(lambda x: tried(x, folders[x]), used)
        return {name: facts for several in each for name, facts in several.items()}


def tried(backend: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a backend made, by its name and the target's."""
    targets = [name for name, used in CASES if used == backend]
    done = subprocess.run(
        [sys.executable, SCRIPT, backend, folder, *targets],
        stdout=subprocess.PIPE,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, backend
    return {f"{backend} {target}": x for target, x in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize(("target", "backend"), CASES)
def test_a_target_owes_what_all_owe(target: str, backend: str, found: dict[str, dict[str, Any]]) -> None:
    x = found[f"{backend} {target}"]
    if x.get("missing"):
        pytest.skip(f"{backend}: {x['missing']}")
    assert x["candidates"]
    for candidate in x["candidates"]:
        assert candidate["agreement"] >= 0.95, candidate
        assert candidate["same_again"], candidate
        assert candidate["operators"] > 0, candidate
        assert candidate["placed"] == candidate["operators"], candidate
        assert candidate["runtime"], candidate
        assert set(candidate["outputs"]) == {"scores"}, candidate
