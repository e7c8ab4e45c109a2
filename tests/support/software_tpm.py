"""A TPM 2.0 in software: swtpm behind a resource manager, as a kernel has one, and a PKCS#11 token in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from processes import Process, free_port, listens, wait_until

_PACKAGES: Final = (
    "swtpm libtss2-tcti-swtpm0 tpm2-tools tpm2-abrmd libtss2-tcti-tabrmd0 dbus "
    "libtpm2-pkcs11-1 libtpm2-pkcs11-tools"
)
_PROGRAMS: Final = ("swtpm", "tpm2_getcap", "tpm2-abrmd", "dbus-daemon", "tpm2_ptool")
_WHERE: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
_MODULES: Final = "/usr/lib/*/pkcs11/libtpm2_pkcs11.so"
PIN: Final = "1234"


class SoftwareTpm:
    """One TPM, whose state outlives it: it can be pulled out and put back."""

    def __init__(self, folder: Path) -> None:
        """Put a TPM into the folder, with a token `device` in it.

        Args:
            folder: holds the TPM's state, and what tpm2-pkcs11 keeps of its keys (sealed by the TPM).
        """
        missing = [name for name in _PROGRAMS if shutil.which(name, path=_WHERE) is None]
        modules = sorted(str(path) for path in Path("/").glob(_MODULES.lstrip("/")))
        if missing or not modules:
            pytest.skip(f"no software TPM is installed: apt-get install {_PACKAGES}")
        pytest.importorskip("PyKCS11")
        self._folder: Final = folder
        for name in ("state", "store"):
            (folder / name).mkdir(parents=True)
        (folder / "pin").write_text(f"{PIN}\n")
        bus = f"unix:path={folder}/bus"
        #: What a process that uses it needs.
        self.environment: Final = {
            "DBUS_SESSION_BUS_ADDRESS": bus,
            "TPM2TOOLS_TCTI": "tabrmd:bus_type=session",
            "TPM2_PKCS11_TCTI": "tabrmd:bus_type=session",
            "TPM2_PKCS11_STORE": str(folder / "store"),
        }
        self.module: Final = modules[0]
        #: Of a key in it, with the PIN in a file.
        self.uri: Final = (
            f"pkcs11:token=device;object=kedge?module-path={self.module}&pin-source=file:{folder}/pin"
        )
        command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={bus}"]
        self._bus: Final = Process(command, folder / "bus.log")
        self._parts: list[Process] = []
        self.put_in()
        self._ask("tpm2_ptool", "init")
        secrets = ("--userpin", PIN, "--sopin", PIN)
        self._ask("tpm2_ptool", "addtoken", "--pid", "1", "--label", "device", *secrets)

    def put_in(self) -> None:
        """Start it, with the state that it has; return when it answers."""
        port = _two_ports()
        sockets = ("--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}")
        state = ("--tpmstate", f"dir={self._folder}/state", "--flags", "not-need-init,startup-clear")
        chip = Process([_path("swtpm"), "socket", "--tpm2", *state, *sockets], self._folder / "swtpm.log")
        self._parts = [chip]
        wait_until(lambda: listens(port + 1), "swtpm listens")
        options = ["--session", "--allow-root", "--flush-all", f"--tcti=swtpm:host=127.0.0.1,port={port}"]
        manager = Process([_path("tpm2-abrmd"), *options], self._folder / "abrmd.log", env=self.environment)
        self._parts.append(manager)
        wait_until(lambda: self._answers("tpm2_getcap", "handles-transient"), "the TPM answers", every=0.1)

    def pull_out(self) -> None:
        """End it as a loose plug does."""
        for part in self._parts:
            part.kill()

    def close(self) -> None:
        """Kill everything."""
        self.pull_out()
        self._bus.kill()

    def objects(self) -> str:
        """Return what tpm2-pkcs11 lists of the token's objects."""
        return self._ask("tpm2_ptool", "listobjects", "--label", "device")

    def _ask(self, *command: str) -> str:
        where = {**os.environ, **self.environment}
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=60, env=where
        ).stdout

    def _answers(self, *command: str) -> bool:
        where = {**os.environ, **self.environment}
        done = subprocess.run(command, check=False, capture_output=True, timeout=60, env=where)
        return done.returncode == 0


def _path(program: str) -> str:
    return shutil.which(program, path=_WHERE) or program


def _two_ports() -> int:
    """Return the first of two free ports in a row: the control channel is looked for at the second."""
    while listens((port := free_port()) + 1):
        pass
    return port
