"""Making an environment: a Python, the distributions of the lock with their hashes, and a health check.

The folder counts as an environment only once its marker stands in it, which comes last and whole. A file
lock, which the installer's own processes hold too, keeps two installations of one tool-chain apart, also when
one of them is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from compiler.errors import CompileError
from compiler.limits import GIB, Limits
from compiler.toolchains import pythons
from compiler.toolchains.definitions import Definition
from compiler.toolchains.environments import Environment
from compiler.toolchains.errors import MissingPythonError, ToolchainInstallError

Tell = Callable[[str, int, int, str], None]

MARKER: Final = "kedge-toolchain.json"
_HEALTH_LIMITS: Final = Limits(memory_bytes=16 * GIB, cpu_s=120, wall_s=240.0)
_LINES_SHOWN: Final = 8
_PIP_TO_UV: Final = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
}
_STEPS: Final = 3


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What the marker says: the environment is whole.

    Attributes:
        versions: the tools, as the health check found them.
        python: version of the interpreter.
    """

    versions: dict[str, str]
    python: str


def install(definition: Definition, folder: Path, workers: Path, tell: Tell) -> Environment:
    """Make an environment and check that it works; the caller holds the lock.

    Args:
        definition: what is in it.
        folder: where it goes; what an earlier attempt left there is removed.
        workers: folder of the modules that run in it.
        tell: is told stage, done, total and detail.

    Raises:
        MissingPythonError: this machine has no Python that it runs on.
        ToolchainInstallError: a step failed, or the health check did.
    """
    stage = f"install tool-chain {definition.name}"
    python = pythons.find(definition.python, pythons.candidates())
    if python is None:
        raise MissingPythonError(definition.name, definition.python, pythons.example(definition.python))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lock = folder / "requirements.txt"
    lock.write_text(definition.lock, encoding="utf-8")
    try:
        tell(stage, 0, _STEPS, f"make an environment with {python}")
        steps = _commands(python, folder, lock)
        _run(definition, steps[0])
        size = f"{definition.distributions} distributions, about {definition.megabytes} MB"
        tell(stage, 1, _STEPS, f"install {size}")
        _run(definition, steps[1])
        tell(stage, 2, _STEPS, "check that it works")
        environment = Environment(name=definition.name, folder=folder, workers=workers)
        ready = _checked(definition, environment)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    part = folder / f"{MARKER}.part"
    part.write_bytes(msgspec.json.encode(ready))
    part.replace(folder / MARKER)
    tell(stage, _STEPS, _STEPS, "ready")
    return msgspec.structs.replace(environment, versions=ready.versions)


@contextlib.contextmanager
def locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that ends with this process and its children; waiting is called where it is taken."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def uv() -> str:
    """Return the program `uv` where there is one, which installs faster than pip; "" where there is none."""
    beside = Path(sys.executable).parent / "uv"
    named = os.environ.get("KEDGE_UV", "")
    return named or shutil.which("uv") or (str(beside) if beside.is_file() else "")


def _commands(python: Path, folder: Path, lock: Path) -> tuple[Sequence[object], Sequence[object]]:
    """Return what makes the environment, and what fills it."""
    inside = folder / "bin" / "python"
    # The lock is complete, and some of its distributions ask for others that are not needed here.
    exact = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", lock)
    tool = uv()
    if tool:
        return (
            (tool, "venv", "--quiet", "--allow-existing", "--no-project", "--python", python, folder),
            (tool, "pip", "install", "--quiet", "--python", inside, *exact),
        )
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    return (
        # isolated: the current folder may hold a `pip.py` of anybody's
        (python, "-I", "-m", "venv", folder),
        (inside, "-I", "-m", "pip", "install", *quiet, *exact),
    )


def _run(definition: Definition, command: Sequence[object]) -> None:
    words = [str(x) for x in command]
    done = subprocess.run(
        words,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        close_fds=False,
        env=surroundings(),
    )
    if done.returncode:
        lines = [x.strip() for x in (done.stderr or done.stdout).split("\n") if x.strip()]
        said = " | ".join(lines[-_LINES_SHOWN:]) or "it said nothing"
        hint = f" ({definition.hint})" if definition.hint else ""
        raise ToolchainInstallError(
            f"tool-chain {definition.name!r}: `{' '.join(words[:3])} ...` failed: {said}{hint}"
        )


def surroundings() -> dict[str, str]:
    """Return the environment of the installer: where a person told pip to look, uv looks too."""
    told = {theirs: os.environ[ours] for ours, theirs in _PIP_TO_UV.items() if os.environ.get(ours)}
    commas = {name: ",".join(x.split()) if name == "UV_FIND_LINKS" else x for name, x in told.items()}
    return {**commas, **os.environ}


def _checked(definition: Definition, environment: Environment) -> Ready:
    with tempfile.TemporaryDirectory(prefix="kedge-toolchain-") as scratch:
        try:
            answer = environment.call(definition.health, {}, scratch=Path(scratch), limits=_HEALTH_LIMITS)
            return msgspec.convert(answer, Ready)
        except (CompileError, msgspec.ValidationError) as error:
            raise ToolchainInstallError(
                f"tool-chain {definition.name!r} does not work once installed: {error}"
            ) from error
