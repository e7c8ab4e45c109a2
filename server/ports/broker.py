"""What the services need from the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fleet.ids import DeviceId


class Publisher(Protocol):
    """A connection that may publish on every topic under `kedge/v1/`."""

    def publish(self, topic: str, payload: bytes, retain: bool = True, qos: int = 1) -> None:
        """Publish, and return when the broker has acknowledged it (at QoS 0: when it is sent).

        An empty retained payload removes what is retained on the topic.

        Raises:
            BrokerError: the broker is not connected, or did not acknowledge in time.
        """


class Credential(Protocol):
    """A private key and its certificate, both PEM."""

    @property
    def key(self) -> bytes:
        """The private key."""

    @property
    def certificate(self) -> bytes:
        """For that key, signed by the fleet's authority."""


class Doorman(Protocol):
    """Who is let in at the broker, and who is thrown out."""

    def refuses(self, probe: Credential) -> bool:
        """Return whether the broker refuses a revoked certificate.

        Raises:
            BrokerError: it cannot be reached.
        """

    def kick(self, device: DeviceId, visit: Callable[[], Credential]) -> None:
        """End a device's connection, if it has one; whether it comes back is not for this to prevent.

        Args:
            device: whose.
            visit: makes a certificate in its name, where one is needed.

        Raises:
            BrokerError: the broker cannot be reached, or lets nobody in with that certificate.
        """
