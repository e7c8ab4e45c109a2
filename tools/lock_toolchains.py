"""Resolve the requirements of every tool-chain again: hashes and names, no registry's address.

`python tools/lock_toolchains.py UV` (`make lock` calls it) writes `compiler/toolchains/definitions/*.txt`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.specifiers import SpecifierSet

from compiler.toolchains import definitions
from compiler.toolchains.installing import surroundings

FOLDERS = ("compiler/toolchains/definitions", "tests/bench/peers")
OPTIONS = ("--universal", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links")
QUIET = ("--no-header", "--no-annotate", "--upgrade", "--quiet")


def oldest(wanted: str) -> str:
    """Return the oldest Python of a range."""
    return next(f"3.{x}" for x in range(10, 30) if f"3.{x}.99" in SpecifierSet(wanted))


def lock(uv: str, name: str, folder: Path) -> None:
    """Write the lock file of one tool-chain."""
    definition = definitions.read(name, folder)
    with tempfile.TemporaryDirectory() as scratch:
        given, overrides = Path(scratch, "given.in"), Path(scratch, "overrides.txt")
        given.write_text("\n".join(definition.requirements) + "\n")
        overrides.write_text("\n".join(definition.overrides) + "\n")
        command = (uv, "pip", "compile", given, "--override", overrides, *OPTIONS, *QUIET)
        python = ("--python-version", oldest(definition.python))
        subprocess.run(
            [*command, *python, "--output-file", folder / f"{name}.txt"], check=True, env=surroundings()
        )


def main() -> None:
    """Write the lock files of the tool-chains whose names are given, or of all."""
    uv, *only = sys.argv[1:]
    for folder in map(Path, FOLDERS):
        for name in definitions.names(folder):
            if not only or name in only:
                lock(uv, name, folder)


if __name__ == "__main__":
    main()
