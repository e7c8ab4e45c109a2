"""The real server and agent where the broker has no room: the model comes over HTTP, as fast as told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_side import digits_bundle
from processes import KEDGE, running, wait_until
from sim_devices import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "objects").mkdir()
    made = Server(tmp_path, "--retained-budget", "1KB", "--blobs", f"file://{tmp_path / 'objects'}")
    try:
        yield made.start()
    finally:
        made.kill()


def test_a_release_that_the_broker_has_no_room_for_is_installed_from_an_object_store(
    server: Server, tmp_path: Path
) -> None:
    release = server.publish(digits_bundle("int8"), "1.0")
    claim = server.api("POST", "/claims", {"name": "test", "quota": 1})["token"]
    state = tmp_path / "agent"
    subprocess.run(
        [
            KEDGE, "agent", "enroll", "--server", server.served.url, "--claim", claim, "--name", "camera-1",
            "--target", "laptop-x86", "--state", str(state),
        ],
        check=True, capture_output=True, timeout=60, env={**os.environ, **server.environment()},
    )  # fmt: skip
    run = [KEDGE, "agent", "run", "--state", str(state), "--window", "9", "--health-window", "0.2"]
    with running(run, tmp_path / "agent.log"):
        groups = [{"percent": 100.0, "rate": 50_000, "jitter": 1.0}]
        body = {"release": release["id"], "policy": {"groups": groups}, "approve": True}
        wait_until(lambda: server.api("GET", "/devices/camera-1")["online"], "the agent is connected", 60)
        rollout = server.api("POST", "/rollouts", body)["id"]
        wait_until(
            lambda: server.api("GET", f"/rollouts/{rollout}")["state"] == "finished", "the rollout ends", 60
        )
    (action,) = server.api("GET", f"/rollouts/{rollout}/actions")
    assert action["measured"]["http_bytes"] == action["measured"]["received_bytes"] > 10_000
    assert "mqtt_bytes" not in action["measured"]
