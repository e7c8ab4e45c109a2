"""What the workers need from the broker beside publishing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from server.ports.broker import Publisher


class Incoming(NamedTuple):
    """One message that arrived."""

    topic: str
    payload: bytes


class Connection(Publisher, Protocol):
    """A connection that comes back by itself, and subscribes again when it does."""

    @property
    def connected(self) -> bool:
        """Whether it is connected now."""

    def subscribe(self, topic_filter: str, receive: Callable[[Incoming], None]) -> None:
        """Have `receive` called, from the connection's own thread, for each message; at QoS 1."""

    def unsubscribe(self, topic_filter: str) -> None:
        """Stop a subscription; a message already under way is dropped."""

    def on_connected(self, call: Callable[[], None]) -> None:
        """Have `call` called after each connect, from the connection's own thread; it must not block."""

    def start(self) -> None:
        """Begin to connect, and keep trying."""

    def stop(self) -> None:
        """Disconnect for good."""
