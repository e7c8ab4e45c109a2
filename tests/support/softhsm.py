"""A PKCS#11 token in software, one of its own for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")
PIN = "123456"


class SoftToken:
    """A token; whoever uses it needs `environment`."""

    def __init__(self, folder: Path, label: str = "ceremony") -> None:
        """Make it below this folder; skip the test where SoftHSM is not installed."""
        if not installed():
            pytest.skip("needs Debian's package softhsm2")
        self.label, self.module = label, next(path for path in _MODULES if Path(path).exists())
        (folder / "tokens").mkdir(parents=True)
        config, self.pin_file = folder / "softhsm2.conf", folder / "pin"
        config.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
        self.pin_file.write_text(PIN)
        self.environment = {"SOFTHSM2_CONF": str(config), "KEDGE_PKCS11_MODULE": self.module}
        secrets = ["--pin", PIN, "--so-pin", "654321"]
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, *secrets],
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            timeout=30,
        )

    def take_in(self, key: EllipticCurvePrivateKey, path: Path, number: str) -> None:
        """Move a key into it.

        Args:
            key: the key.
            path: where it lies meanwhile.
            number: its CKA_ID, in hex.
        """
        encoding, layout = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(key.private_bytes(encoding, layout, serialization.NoEncryption()))
        command = ["softhsm2-util", "--import", str(path), "--token", self.label, "--label", "moved"]
        subprocess.run(
            [*command, "--id", number, "--pin", PIN],
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            timeout=30,
        )

    def uri(self, name: str) -> str:
        """Return the URI of a key in it."""
        return f"pkcs11:token={self.label};object={name}?module-path={self.module}"


def installed() -> bool:
    """Return whether SoftHSM is on this machine."""
    return shutil.which("softhsm2-util") is not None and any(Path(path).exists() for path in _MODULES)
