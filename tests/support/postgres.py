"""A real PostgreSQL cluster for tests: on loopback, on a free port, run by an unprivileged user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import free_port

_USER = "nobody"


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent


def _as_user(command: list[str]) -> None:
    """Run a command as `nobody` when we are root: PostgreSQL refuses to run as root."""
    if os.geteuid() == 0:
        command = [shutil.which("setpriv") or "setpriv", f"--reuid={_USER}", "--clear-groups", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Run a cluster for as long as the block lasts; give its URL."""
    binaries, port = _binaries(), free_port()
    # pytest's own temporary folders are closed to the user that PostgreSQL runs as.
    folder = Path(tempfile.mkdtemp(prefix="kedge-postgres-"))
    if os.geteuid() == 0:
        user = pwd.getpwnam(_USER)
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = folder / "data"
    _as_user(
        [str(binaries / "initdb"), "-D", str(data), "-U", "kedge", "-A", "trust", "-E", "UTF8", "--no-sync"]
    )
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-w"]
    _as_user([*control, "-l", str(folder / "log"), "-o", options, "start"])
    try:
        yield f"postgresql://kedge@127.0.0.1:{port}/postgres"
    finally:
        _as_user([*control, "-m", "immediate", "stop"])
        shutil.rmtree(folder)
