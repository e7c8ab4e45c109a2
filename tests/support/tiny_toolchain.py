"""A tool-chain of a test's own: one wheel made on the spot, and workers written by the test; no network."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
import zipfile
from pathlib import Path

import pytest

from compiler.limits import GIB, Limits
from compiler.toolchains import Store

LIMITS = Limits(memory_bytes=4 * GIB, cpu_s=30, wall_s=30.0)
UV = Path(__file__).parents[2] / ".tools" / "bin" / "uv"
HEALTHY = """
import platform
def call(request):
    return {"versions": {"tiny": "1.0"}, "python": platform.python_version()}
"""


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, *, python: str = "", extra: str = "") -> Store:
    """Write the definition of a tool-chain named "tiny", and return its store.

    Args:
        folder: where everything goes.
        monkeypatch: tells the installers to look nowhere but here.
        python: versions that it takes; default: the one that runs this.
        extra: more lines of the definition.
    """
    for name in ("definitions", "workers", "wheels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ours = platform.python_version()
    lines = ['name = "tiny"', 'purpose = "tests"', f'python = "{python or f"=={ours}"}"', "megabytes = 1"]
    lines += ['health = "health"', "requirements = []", extra]
    (folder / "definitions" / "tiny.toml").write_text("\n".join(lines))
    lock(folder, "1.0")
    (folder / "workers" / "health.py").write_text(HEALTHY)
    for name, value in {
        "PIP_NO_INDEX": "1",
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(folder / "wheels"),
        "PIP_FIND_LINKS": str(folder / "wheels"),
        **({"KEDGE_UV": str(UV)} if UV.is_file() else {}),
    }.items():
        monkeypatch.setenv(name, value)
    return Store(root=folder / "root", definitions=folder / "definitions", workers=folder / "workers")


def lock(folder: Path, version: str, *, digest: str = "") -> None:
    """Lock the tool-chain's only distribution to a version, which is made for it."""
    wheel = folder / "wheels" / f"tiny-{version}-py3-none-any.whl"
    about = f"tiny-{version}.dist-info"
    # The host needs numpy: here it is the one that runs the tests.
    files = {
        "tiny.pth": sysconfig.get_paths()["platlib"] + "\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(name, text)
    found = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    text = f"tiny=={version} --hash=sha256:{found}\n"
    (folder / "definitions" / "tiny.txt").write_text(text)


def worker(store: Store, name: str, text: str) -> str:
    """Write a worker, and return its name."""
    (store.workers / f"{name}.py").write_text(text)
    return name


def quiet(stage: str, done: int, total: int, detail: str) -> None:
    """Take progress, and say nothing."""
