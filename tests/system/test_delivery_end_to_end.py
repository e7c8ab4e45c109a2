"""The real server and agent where the broker has no room: the model comes over HTTP, as fast as told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_side import digits_bundle
from object_store import ObjectStore, s3
from processes import KEDGE, running, wait_until
from sim_devices import Server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    with s3(tmp_path / "s3") as found:
        yield found


@pytest.fixture
def server(tmp_path: Path, store: ObjectStore) -> Iterator[Server]:
    made = Server(tmp_path, "--retained-budget", "1KB", "--blobs", f"{store.url}/kedge")
    try:
        yield made.start()
    finally:
        made.kill()


def test_a_release_that_the_broker_has_no_room_for_is_installed_from_an_object_store(
    server: Server, store: ObjectStore, tmp_path: Path
) -> None:
    """The server sends the device to the store, for one file and some minutes: no byte passes through it."""
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
    stranger = {name: "" for name in os.environ if name.startswith("AWS_")}  # to the store, the device is one
    with running(run, tmp_path / "agent.log", env=stranger):
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
    asked = [line.split() for line in store.log.read_text().splitlines() if " GET " in line]
    given = [x for x in asked if "python-httpx" in x[9]]  # the agent's; the server's name is another
    assert {x[7] for x in given} == {"206"}
    assert sum(int(x[12]) for x in given) >= action["measured"]["http_bytes"]
