"""A token in software: SoftHSM with a folder of its own, or a skip that names what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")
PIN = "1234"


class SoftToken(NamedTuple):
    """One token.

    Attributes:
        uri: of a key in it, with the PIN in a file.
        environment: what a process that uses it needs.
        label: its name.
        module: SoftHSM's library.
    """

    uri: str
    environment: dict[str, str]
    pin_file: Path
    label: str
    module: str

    def with_label(self, label: str) -> str:
        """Return the address of another key in it."""
        return self.uri.replace("object=device", f"object={label}")

    def asking(self, label: str) -> str:
        """Return the address of a key in it, for which the PIN is asked."""
        return f"pkcs11:token={self.label};object={label}?module-path={self.module}"

    def take_in(self, key: EllipticCurvePrivateKey, path: Path, number: str) -> None:
        """Move a key into it.

        Args:
            key: the key.
            path: where it lies meanwhile.
            number: its CKA_ID, in hex.
        """
        encoding, layout = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(key.private_bytes(encoding, layout, serialization.NoEncryption()))
        where = ["--token", self.label, "--label", "moved", "--id", number]
        _softhsm("--import", str(path), *where, "--pin", PIN, environment=self.environment)


def installed() -> bool:
    """Return whether SoftHSM is on this machine."""
    return shutil.which("softhsm2-util") is not None and any(Path(path).exists() for path in MODULES)


def soft_token(folder: Path, label: str = "kedge") -> SoftToken:
    """Make a token in a folder; this process uses it too."""
    if not installed():
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    pytest.importorskip("PyKCS11")
    module = next(path for path in MODULES if Path(path).exists())
    (folder / "tokens").mkdir(parents=True)
    config = folder / "softhsm2.conf"
    config.write_text(
        f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    environment = {"SOFTHSM2_CONF": str(config), "KEDGE_PKCS11_MODULE": module}
    secrets = ("--pin", PIN, "--so-pin", PIN)
    _softhsm("--init-token", "--free", "--label", label, *secrets, environment=environment)
    pin_file = folder / "pin"
    pin_file.write_text(f"{PIN}\n")
    uri = f"pkcs11:token={label};object=device?module-path={module}&pin-source=file:{pin_file}"
    return SoftToken(uri, environment, pin_file, label, module)


def _softhsm(*arguments: str, environment: dict[str, str]) -> None:
    command = ["softhsm2-util", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=30, env={**os.environ, **environment})
