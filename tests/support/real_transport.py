"""A real mosquitto with the agent's and the server's own MQTT adapters, in the shape of `FakeBroker`."""

from __future__ import annotations

from pathlib import Path

from brokers import Mosquitto
from device_agent.adapters.mqtt import Credentials, Message, MqttLink
from fleet.wire.enrolment import BrokerAccess
from processes import wait_until
from server.adapters.mqtt import BrokerLogin, MqttConnection


class RealBroker:
    """Starts a broker and connects devices and servers to it."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.mosquitto = Mosquitto(folder / "broker", f"autosave_on_changes false\n{extra}").start()
        self._folder = folder
        self._links: list[MqttLink] = []
        self._connections: list[MqttConnection] = []

    def link(self, device: str = "") -> MqttLink:
        """Connect a device."""
        nothing = self._folder / "none"
        link = MqttLink(
            f"{device or 'test'}-{len(self._links)}",
            BrokerAccess(url=self.mosquitto.url),
            credentials=Credentials(key=nothing, certificate=nothing, ca=nothing),
            will=Message("kedge/v1/device/none/status", b""),
            on_change=lambda _connected: None,
        )
        link.start()
        self._links.append(link)
        wait_until(lambda: link.connected, "the device is connected")
        return link

    def connection(self) -> MqttConnection:
        """Connect a server."""
        connection = MqttConnection(self.mosquitto.url, f"server-{len(self._connections)}", BrokerLogin())
        connection.start()
        self._connections.append(connection)
        wait_until(lambda: connection.connected, "the server is connected")
        return connection

    def lose_everything(self) -> None:
        """Kill the broker, empty its disk, start it, and wait until everybody is connected again."""
        clients: list[MqttLink | MqttConnection] = [*self._links, *self._connections]
        self.mosquitto.kill()
        wait_until(lambda: not any(client.connected for client in clients), "the loss is noticed")
        for saved in self.mosquitto.folder.glob("*.db*"):
            saved.unlink()
        self.mosquitto.start()
        wait_until(lambda: all(client.connected for client in clients), "everybody is back")

    def close(self) -> None:
        """Disconnect everybody and stop the broker."""
        for link in self._links:
            link.stop()
        for connection in self._connections:
            connection.stop()
        self.mosquitto.kill()
