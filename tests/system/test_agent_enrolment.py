"""A real agent enrols with the real server, updates, reports; and what is wrong with a claim is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from device_agent.adapters.state import StateFolder
from fleet_side import digits, digits_bundle
from processes import KEDGE, Process, free_port, wait_until
from sim_devices import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    try:
        yield found.start()
    finally:
        found.kill()


def _enrol(claim: str, state: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KEDGE, "agent", "enroll", "--server", url, "--claim", claim, "--state", str(state), *more],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _wait_for(server: Server, rollout: int, state: str) -> dict[str, object]:
    def there() -> dict[str, object]:
        found: dict[str, object] = server.api("GET", f"/rollouts/{rollout}")
        return found if found["state"] == state else {}

    return wait_until(there, f"rollout {rollout} is {state}", 60)


def test_from_a_claim_to_an_answer_and_back_from_a_bad_release(server: Server, tmp_path: Path) -> None:
    """The whole of a device's life with a real server, by the command line alone."""
    url = server.environment()["KEDGE_SERVER"]
    claim = server.api("POST", "/claims", {"quota": 1})["token"]
    state = StateFolder(tmp_path / "agent")
    done = _enrol(claim, state.root, url, "--target", "laptop-x86", "--name", "porch", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device_id"] == "porch"
    assert state.key.stat().st_mode & 0o077 == 0
    again = _enrol(claim, state.root, url)
    assert again.returncode == 2
    assert "already enrolled as porch" in again.stderr

    options = ["--health-window", "0.5", "--window", "1", "--rest-port", str(port := free_port())]
    command = [sys.executable, "-m", "kedge", "agent", "run", "--state", str(state.root), *options]
    agent = Process(command, tmp_path / "agent.log")
    try:
        good = digits_bundle("int8")
        release = server.publish(good)
        policy = {"groups": [{"percent": 100.0}]}
        made = server.api("POST", "/rollouts", {"release": release["id"], "policy": policy, "approve": True})
        _wait_for(server, int(made["id"]), "finished")
        picture, label = (x[0] for x in digits())
        body = {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "FP32",
                    "shape": [1, 1, 8, 8],
                    "data": picture.ravel().tolist(),
                }
            ]
        }
        url_infer = f"http://127.0.0.1:{port}/v2/models/digits/infer"
        logits = httpx.post(url_infer, json=body).json()["outputs"][0]["data"]
        assert logits.index(max(logits)) == label

        bad = server.publish(digits_bundle("bad"))
        made = server.api("POST", "/rollouts", {"release": bad["id"], "policy": policy, "approve": True})
        halted = _wait_for(server, int(made["id"]), "halted")
        assert halted["failures"] == {"golden_mismatch": 1}
        assert httpx.post(url_infer, json=body).json()["outputs"][0]["data"] == logits
        shown = subprocess.run(
            [KEDGE, "agent", "status", "--state", str(state.root), "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        status = json.loads(shown.stdout)
        assert status["running"]
        assert status["models"][0]["serving"] == release["bundles"][0]["digest"]
    finally:
        agent.kill()
    offline = subprocess.run(
        [KEDGE, "agent", "status", "--state", str(state.root)], check=True, capture_output=True, text=True
    )
    assert "not running" in offline.stdout


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ("nonsense", "claim token: expected kedge-claim.<secret>.<fingerprint>"),
        ("kedge-claim.secret.00000000000000000000000000000000", "root metadata: expected fingerprint"),
    ],
)
def test_a_bad_claim_is_one_line(server: Server, tmp_path: Path, claim: str, says: str) -> None:
    done = _enrol(claim, tmp_path / "agent", server.environment()["KEDGE_SERVER"])
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_server_that_is_not_the_tokens_never_sees_its_secret(server: Server, tmp_path: Path) -> None:
    """A device is sent to somebody else's server: that shows another root, and gets no secret to use."""
    made = server.api("POST", "/claims", {"quota": 1})
    claim = made["token"]
    forged = claim[: claim.rindex(".")] + "." + "0" * 32
    done = _enrol(forged, tmp_path / "agent", server.environment()["KEDGE_SERVER"])
    assert done.returncode == 2
    assert "root metadata: expected fingerprint" in done.stderr
    assert not StateFolder(tmp_path / "agent").enrolled
    assert [x["used"] for x in server.api("GET", "/claims") if x["id"] == made["id"]] == [0]


def test_a_secret_that_the_server_does_not_know_is_one_line(server: Server, tmp_path: Path) -> None:
    claim = server.api("POST", "/claims", {"quota": 1})["token"]
    prefix, _, fingerprint = claim.split(".")
    done = _enrol(f"{prefix}.wrong.{fingerprint}", tmp_path / "agent", server.environment()["KEDGE_SERVER"])
    assert done.returncode == 2
    assert "the server refuses" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_server_that_is_away_is_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = _enrol("kedge-claim.a.00000000000000000000000000000000", tmp_path / "agent", url)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "status"])
def test_without_enrolment_it_says_what_to_do(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [KEDGE, "agent", command, "--state", str(tmp_path / "none")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "run `kedge agent enroll` first" in done.stderr
    assert "Traceback" not in done.stderr
