"""The server with a mosquitto that is not its own, which is killed in the middle of a rollout."""

from __future__ import annotations

from pathlib import Path

from brokers import mosquitto
from processes import wait_until
from sim_devices import Server, layout


def test_a_broker_killed_in_the_middle_of_a_rollout_loses_nothing_that_matters(tmp_path: Path) -> None:
    """It forgets every retained message; the server publishes them again, and the device sends again."""
    with mosquitto(tmp_path / "broker") as broker:
        server = Server(tmp_path, "--broker", broker.url)
        try:
            server.start()
            device = server.enrol("dev-a", server.api("POST", "/claims", {})["token"]).start()
            wait_until(lambda: server.api("GET", "/devices", online=True)["total"] == 1, "it is online")
            release = server.publish(layout(tmp_path / "b"))
            device.obey = "ignore"
            rollout = server.api("POST", "/rollouts", {"release": release["id"], "approve": True})["id"]
            broker.kill()
            wait_until(lambda: not server.healthy(), "health says that the broker is gone")
            (tmp_path / "broker" / "mosquitto.db").unlink(missing_ok=True)
            device.obey = "commit"
            broker.start()
            wait_until(
                lambda: server.api("GET", f"/rollouts/{rollout}")["state"] == "finished", "it finished", 40
            )
            wait_until(server.healthy, "it is healthy again")
            device.stop()
        finally:
            server.kill()
