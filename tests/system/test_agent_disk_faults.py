"""An agent whose disk fails it: read-only, or full at any step. What runs goes on; nothing is half done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from brokers import mosquitto
from fleet.wire.messages import UpdateState
from fleet_side import AgentSide, FleetSide, digits, digits_bundle
from processes import Process, free_port, wait_until


def _namespaces() -> bool:
    """Return whether this user may mount in a namespace of their own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    tried = subprocess.run([unshare, "-Urm", "true"], check=False, capture_output=True)
    return tried.returncode == 0


needs_namespaces = pytest.mark.skipif(not _namespaces(), reason="needs unshare(1) and user namespaces")


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[AgentSide]:
    """A device that has a model, switched off."""
    with mosquitto(tmp_path / "broker") as broker:
        fleet = FleetSide(tmp_path / "server", broker.url)
        bundle = fleet.release(digits_bundle("int8"), "1.0")
        agent = AgentSide(tmp_path, fleet, broker.url).start()
        fleet.assign("d1", [bundle], "first")
        assert fleet.final("first").state is UpdateState.COMMITTED
        agent.stop()
        yield agent
        agent.kill()
        fleet.close()


@needs_namespaces
def test_a_disk_that_comes_up_read_only_does_not_stop_the_model(installed: AgentSide, tmp_path: Path) -> None:
    """The file system was mounted read-only after errors: the device still answers its applications."""
    state, port = installed.state.root, free_port()
    command = f"mount --bind {state} {state} && mount -o remount,bind,ro {state} && exec {sys.executable} "
    options = f"-m kedge agent run --state {state} --rest-port {port} --threads 1"
    agent = Process(["unshare", "-Urm", "sh", "-c", command + options], tmp_path / "read-only.log")
    url = f"http://127.0.0.1:{port}/v2"

    def up() -> bool:
        assert agent.running(), agent.output()[-3000:]
        try:
            return httpx.get(f"{url}/health/ready", timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    try:
        wait_until(up, "the agent answers")
        picture = digits()[0][0].ravel().tolist()
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": picture}
        answer = httpx.post(f"{url}/models/digits/infer", json={"inputs": [tensor]}, timeout=10.0)
        assert answer.is_success, answer.text
    finally:
        agent.kill()


SUPPORT = Path(__file__).resolve().parent.parent / "support"
#: Every so many of about 250 calls: each costs two processes.
STRIDE = 9


@needs_namespaces
def test_a_disk_that_becomes_full_at_any_step_harms_nothing_and_the_update_succeeds_later(
    tmp_path: Path,
) -> None:
    """Somebody's log file takes the last block while an update is written, unpacked, journaled or committed.

    The model that answers goes on answering; when the log is gone, the same release installs.
    """
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, str(SUPPORT / "full_disk.py"), str(tmp_path), str(STRIDE)],
        check=False,
        capture_output=True,
        env={
            "PYTHONPATH": str(SUPPORT),
            "OPENBLAS_NUM_THREADS": "1",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        },
        timeout=200,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = msgspec.json.decode(done.stdout)
    assert found["failures"] == [], done.stderr.decode()[-3000:]
    assert found["calls"] > 100
    assert found["stopped"] > 4, "the full disk is felt"
