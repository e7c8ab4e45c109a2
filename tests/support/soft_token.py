"""A token in software: SoftHSM with a folder of its own, or a skip that names what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")
PIN = "1234"


class SoftToken(NamedTuple):
    """One token.

    Attributes:
        uri: of a key in it, with the PIN in a file.
        environment: what a process that uses it needs.
    """

    uri: str
    environment: dict[str, str]
    pin_file: Path

    def with_label(self, label: str) -> str:
        """Return the address of another key in it."""
        return self.uri.replace("object=device", f"object={label}")


def soft_token(folder: Path) -> SoftToken:
    """Make a token in a folder; this process uses it too."""
    module = next((x for x in MODULES if Path(x).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    pytest.importorskip("PyKCS11")
    (folder / "tokens").mkdir(parents=True)
    config = folder / "softhsm2.conf"
    config.write_text(
        f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    environment = {"SOFTHSM2_CONF": str(config)}
    command = ["softhsm2-util", "--init-token", "--free", "--label", "kedge", "--pin", PIN, "--so-pin", PIN]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    pin_file = folder / "pin"
    pin_file.write_text(f"{PIN}\n")
    query = f"module-path={module}&pin-source=file:{pin_file}"
    return SoftToken(f"pkcs11:token=kedge;object=device?{query}", environment, pin_file)
