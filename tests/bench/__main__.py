"""`make bench`: run every benchmark of this folder, print a table, write `build/bench.json`.

Each module beside this one has `NAMES`, what it measures, and `measure()`, which returns one object per
figure: name, value, unit, better ("higher" or "lower"), peer, peer_value, ratio (value / peer_value), runs,
and spread (half the range of the runs, relative to the median). A figure is a median; it is compared with a
peer on the same machine in the same run, so the ratio means something where the machines differ.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COLUMNS = ("name", "value", "unit", "better", "peer", "peer_value", "ratio", "runs")


def modules(only: str) -> list[str]:
    """Return the names of the benchmark modules that measure something with this prefix."""
    found = []
    for path in sorted(HERE.glob("[a-z]*.py")):
        module = importlib.import_module(f"tests.bench.{path.stem}")
        if any(name.startswith(only) for name in module.NAMES):
            found.append(path.stem)
    return found


def show(results: list[dict[str, object]]) -> None:
    """Print the table."""
    table = Table(*COLUMNS, title="medians of one run on this machine")
    for result in results:
        cells = (result[c] for c in COLUMNS)
        table.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    Console(width=140).print(table)


def main() -> int:
    """Run the benchmarks; exit with 2 when the prefix names none."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", metavar="PREFIX", help="run only figures with this prefix")
    only = parser.parse_args().only
    sys.path.insert(0, str(HERE.parent / "support"))
    chosen = modules(only)
    if not chosen:
        print(f"no benchmark measures anything that starts with {only!r}", file=sys.stderr)
        return 2
    results: list[dict[str, object]] = []
    for stem in chosen:
        print(f"{stem} ...", file=sys.stderr, flush=True)
        results.extend(importlib.import_module(f"tests.bench.{stem}").measure())
    out = ROOT / "build" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
