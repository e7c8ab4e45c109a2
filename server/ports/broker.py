"""What the services need from the broker."""

from __future__ import annotations

from typing import Protocol


class Publisher(Protocol):
    """A connection that may publish on every topic under `kedge/v1/`."""

    def publish(self, topic: str, payload: bytes, retain: bool = True, qos: int = 1) -> None:
        """Publish, and return when the broker has acknowledged it (at QoS 0: when it is sent).

        An empty retained payload removes what is retained on the topic.

        Raises:
            BrokerError: the broker is not connected, or did not acknowledge in time.
        """
