"""A device whose identity lies in a TPM: a software TPM 2.0 (swtpm), by way of tpm2-pkcs11."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.adapters.state import StateFolder
from processes import KEDGE, Process, wait_until
from relay import Relay
from sim_devices import Server
from software_tpm import SoftwareTpm


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    made = SoftwareTpm(tmp_path / "tpm")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    # Certificates are dated an hour back: one for so short a time is due to be renewed from the beginning.
    made = Server(tmp_path, "--certificate-days", "0.01")
    try:
        yield made.start()
    finally:
        made.kill()


def test_an_identity_in_a_tpm_enrols_signs_renews_and_survives_a_loose_plug(
    tpm: SoftwareTpm, server: Server, tmp_path: Path
) -> None:
    """The TPM makes the key and never shows it; its plug comes loose in the field, and is pushed in again.

    Meanwhile the device stays connected, for that key lies in a file, and what it has to sign waits.
    """
    state = StateFolder(tmp_path / "cam")
    environment = {**os.environ, **server.environment(), **tpm.environment}
    claim = server.api("POST", "/claims", {"quota": 1})["token"]
    asked = ["--claim", claim, "--target", "laptop-x86", "--name", "cam", "--key", tpm.uri, "--json"]
    command = [KEDGE, "agent", "enroll", *asked, "--state", str(state.root)]
    enrolled = subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert json.loads(enrolled.stdout)["device_id"] == "cam"
    assert state.key.read_text() == tpm.uri
    assert "CKO_PRIVATE_KEY" in tpm.objects()
    first = state.tls.read_bytes()

    relay = Relay(int(server.served.broker.rpartition(":")[2]))
    run = [sys.executable, "-m", "kedge", "agent", "run", "--state", str(state.root)]
    run += ["--broker", f"mqtt://127.0.0.1:{relay.port}"]
    agent = Process(run, tmp_path / "cam.log", env=environment)
    try:
        agent.wait_for_output("the certificate is renewed", 60)
        assert state.tls.read_bytes() != first
        signed = wait_until(lambda: _signed(server), "the device has signed what it runs", 30)

        tpm.pull_out()
        relay.cut()
        agent.wait_for_output("no statement is made: token device", 60)
        assert server.api("GET", "/devices/cam")["online"]
        tpm.put_in()
        wait_until(lambda: _signed(server) > signed, "it signs again", 40)

        server.api("POST", "/devices/cam/decommission", {})
        wait_until(lambda: not agent.running(), "it has wiped itself and stopped", 40)
    finally:
        agent.kill()
        relay.close()
    assert "CKO_PRIVATE_KEY" not in tpm.objects()


def _signed(server: Server) -> int:
    """Return the number of the device's last signed statement that the server took in."""
    answer = server.raw("GET", "/devices/cam/statement")
    told: dict[str, Any] = answer.json() if answer.is_success else {}
    return int(told.get("sequence", 0))
