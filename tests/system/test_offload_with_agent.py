"""The real agent, server and accelerator: an application gets an answer at once, and a better one later."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from accelerators import Served, mlserver
from fleet_side import compile_digits
from kedge.demo.traffic import Application, accuracy
from processes import KEDGE, free_port, running, wait_until
from sim_devices import Server

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
QUESTIONS = 150


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Served]:
    with mlserver(tmp_path / "repository", {"digits-cloud": EXAMPLE / "cloud.onnx"}) as served:
        yield served


def kedge(server: Server, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [KEDGE, *arguments, "--json"],
        env={**os.environ, **server.environment()},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def enrolled_with_release(server: Server, folder: Path) -> Path:
    """Release the compiled example and enrol a device; return its state folder."""
    server.publish(compile_digits(folder / "bundle"), "1.0")
    claim = server.api("POST", "/claims", {"name": "test", "quota": 1})["token"]
    state = folder / "agent"
    subprocess.run(
        [
            KEDGE, "agent", "enroll", "--server", server.served.url, "--claim", claim, "--name", "camera-1",
            "--target", "laptop-x86", "--offload-policy", "digits=raw", "--state", str(state),
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return state


def test_the_agents_provisional_answers_are_made_good_by_the_cloud(
    server: Server, cloud: Served, tmp_path: Path
) -> None:
    """Compiled, signed, shipped, asked: what the device was unsure of comes back better from MLServer."""
    kedge(server, "pool", "add", "here", cloud.grpc, "--region", "local", "--model", "digits=digits-cloud")
    state, port = enrolled_with_release(server, tmp_path), free_port()
    run = [KEDGE, "agent", "run", "--state", str(state), "--rest-port", str(port)]
    with running([*run, "--window", "1", "--health-window", "0.2"], tmp_path / "agent.log"):
        application = Application("camera-1", state / "agent.sock", f"http://127.0.0.1:{port}")
        wait_until(lambda: server.api("GET", "/devices/camera-1")["online"], "the agent is connected", 60)
        kedge(server, "rollout", "create", "digits@1.0", "--groups", "100%", "--approve")
        wait_until(lambda: served(application.rest), "the agent serves the model", 60)
        with np.load(EXAMPLE / "stream.npz") as data:
            application.ask("digits", data["image"][:QUESTIONS], data["labels"][:QUESTIONS])
        wait_until(lambda: application.collect() == 0, "every hard request is answered", 60)
        view = wait_until(lambda: reported(server), "the agent's windows arrive", 30)

    assert view is not None
    alone, together = (accuracy(application.asked, with_cloud=x) for x in (False, True))
    assert together >= alone + 0.05
    hard = sum(bool(x.request_id) for x in application.asked)
    assert view["answered"] == view["received"] == hard
    assert view["share"] == pytest.approx(hard / QUESTIONS)


def served(rest: str) -> bool:
    try:
        return httpx.get(f"{rest}/v2/models/digits/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def reported(server: Server) -> dict[str, Any] | None:
    """Return how offload does once the agent's windows cover every question, else None."""
    models: list[dict[str, Any]] = server.api("GET", "/offload")["models"]
    return next((x for x in models if x["requests"] == QUESTIONS), None)
