"""The server's whole path with real processes: enrol, publish, roll out, take events in, survive kill -9."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import KEDGE, wait_until
from sim_devices import Server, SimDevice, layout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    try:
        yield found.start()
    finally:
        found.kill()


@pytest.fixture
def fleet(server: Server) -> Iterator[list[SimDevice]]:
    claim = server.api("POST", "/claims", {"quota": 3, "labels": {"site": "north"}})["token"]
    devices = [server.enrol(f"dev-{n}", claim).start() for n in range(3)]
    wait_until(lambda: server.api("GET", "/devices", online=True)["total"] == 3, "all are online")
    yield devices
    for device in devices:
        device.stop()


def _kedge(server: Server, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [KEDGE, *arguments], capture_output=True, text=True, timeout=60, env=server.environment(), check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def _roll_out(server: Server, release: int, **more: object) -> int:
    policy = {"groups": [{"count": 1}, {"percent": 100.0}], **more}
    made = server.api("POST", "/rollouts", {"release": release, "policy": policy, "approve": True})
    return int(made["id"])


def _wait_for(server: Server, rollout: int, state: str) -> dict[str, object]:
    def there() -> dict[str, object] | None:
        found: dict[str, object] = server.api("GET", f"/rollouts/{rollout}")
        return found if found["state"] == state else None

    found = wait_until(there, f"rollout {rollout} is {state}", 30)
    assert found is not None
    return found


def test_a_second_server_on_the_same_data_is_refused(server: Server) -> None:
    """Two servers on one data folder would send each device two minds."""
    said = _kedge(server, "serve", "--data", str(server.folder / "data"), "--port", "0", code=2)
    assert said.startswith("error: data folder ")
    assert said.endswith("a server is running on it\n")
    assert server.healthy()


def test_a_release_reaches_every_device_by_the_command_line_alone(
    server: Server, fleet: list[SimDevice], tmp_path: Path
) -> None:
    published = json.loads(
        _kedge(server, "publish", str(layout(tmp_path / "b")), "--model-version", "1.0", "--json")
    )
    assert (published["model"], published["version"]) == ("digits", "1.0")
    assert published["signed_at"] is not None
    made = json.loads(
        _kedge(server, "rollout", "create", "digits@1.0", "--groups", "1,100%", "--approve", "--json")
    )
    ended = json.loads(_kedge(server, "rollout", "watch", str(made["id"]), "--timeout", "40", "--json"))
    assert ended["state"] == "finished"
    assert [group["counts"] for group in ended["groups"]] == [{"succeeded": 1}, {"succeeded": 2}]
    assert {device.active for device in fleet} == {published["bundles"][0]["digest"]}
    shown = json.loads(_kedge(server, "device", "show", "dev-1", "--json"))
    assert shown["models"][0]["active"] == shown["models"][0]["desired"] == fleet[1].active
    assert [event["state"] for event in shown["events"]] == ["committed", "downloading"]


def test_a_bad_release_halts_after_the_canary_and_the_others_never_hear_of_it(
    server: Server, fleet: list[SimDevice], tmp_path: Path
) -> None:
    good = server.publish(layout(tmp_path / "good"))
    _wait_for(server, _roll_out(server, good["id"]), "finished")
    bad = server.publish(layout(tmp_path / "bad", weights=b"broken"))
    for device in fleet:
        device.obey = "fail"
    rollout = _roll_out(server, bad["id"])
    halted = _wait_for(server, rollout, "halted")
    assert halted["failures"] == {"golden_mismatch": 1}
    statuses = sorted(x["status"] for x in server.api("GET", f"/rollouts/{rollout}/actions"))
    assert statuses == ["canceled", "canceled", "failed"]
    assert sum(len(device.failed) for device in fleet) == 1
    digest = good["bundles"][0]["digest"]
    devices = server.api("GET", "/devices")["items"]
    assert {device["models"][0]["desired"] for device in devices} == {digest}
    assert _kedge(server, "rollout", "watch", str(rollout), code=2).count("halted") >= 1


def test_a_finished_rollout_can_be_rolled_back_on_every_device(
    server: Server, fleet: list[SimDevice], tmp_path: Path
) -> None:
    first = server.publish(layout(tmp_path / "one"))
    _wait_for(server, _roll_out(server, first["id"]), "finished")
    second = server.publish(layout(tmp_path / "two", weights=b"other"))
    rollout = _roll_out(server, second["id"])
    _wait_for(server, rollout, "finished")
    server.api("POST", f"/rollouts/{rollout}/rollback", {"reason": "complaints"})
    _wait_for(server, rollout, "rolled_back")
    assert {device.active for device in fleet} == {first["bundles"][0]["digest"]}


def test_a_server_killed_in_the_middle_of_a_rollout_goes_on_where_it_was(
    server: Server, fleet: list[SimDevice], tmp_path: Path
) -> None:
    """The embedded broker dies with the server, and with it everything it retained."""
    release = server.publish(layout(tmp_path / "one"))
    for device in fleet:
        device.obey = "ignore"
    rollout = _roll_out(server, release["id"])
    server.kill()
    for device in fleet:
        device.obey = "commit"
    server.start()
    ended = _wait_for(server, rollout, "finished")
    assert [group["state"] for group in ended["groups"]] == ["finished", "finished"]  # type: ignore[attr-defined]  # JSON
    assert {device.active for device in fleet} == {release["bundles"][0]["digest"]}


def test_reports_are_stored_once_however_often_they_come(server: Server, fleet: list[SimDevice]) -> None:
    device = fleet[0]
    ids = {device.report(window=0.0), device.report(window=60.0), device.report(window=0.0)}
    wait_until(lambda: ids <= device.acknowledged, "the reports are acknowledged")
    counts = server.api("GET", "/status")["counts"]
    assert counts["messages_modelreport"] == 3
    metrics = server.raw("GET", "/../../metrics").text
    assert 'kedge_events_total{kind="messages_modelreport"} 3.0' in metrics


def test_malformed_messages_are_counted_and_the_rest_is_taken_in(
    server: Server, fleet: list[SimDevice]
) -> None:
    """A device with a broken disk, or a bad temper, sends bytes that are no message."""
    device = fleet[0]
    for payload in (b"", b"\xff" * 100, b"\x81\xa4type\xa5hello", b"\xc1", b"x" * 70_000):
        device.connection.publish(f"kedge/v1/device/{device.id}/report", payload, retain=False)
    good = device.report(window=0.0)
    wait_until(lambda: good in device.acknowledged, "the good report is acknowledged")
    status = server.api("GET", "/status")
    assert status["counts"]["malformed_messages"] == 5
    assert status["ok"]
