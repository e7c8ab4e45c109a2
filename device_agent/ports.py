"""What the agent needs from the world: the broker's link, and a store of content-addressed bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from fleet.ids import Digest

#: Called with topic and payload, on a thread of the link's own: it must be quick and never block.
OnMessage: TypeAlias = Callable[[str, bytes], None]


class Link(Protocol):
    """One connection to the broker. All methods may be called from any thread.

    A lost connection is the link's to mend. After a reconnect it subscribes again to what is subscribed
    then, so a retained message may arrive more than once, and a callback must bear that.
    """

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Send a message, or queue it when there is no connection."""

    def subscribe(self, topics: Sequence[str], on_message: OnMessage) -> None:
        """Subscribe at QoS 1 to exact topics, in one packet and in this order; return without waiting."""

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """Stop the subscriptions; a message already under way may still arrive."""


class BlobStore(Protocol):
    """Content-addressed bytes that survive a power cut: chunks on arrival, then whole blobs."""

    def has(self, digest: Digest) -> bool:
        """Return whether these bytes are stored, whole."""

    def get(self, digest: Digest) -> bytes:
        """Return the bytes.

        Raises:
            BundleError: they are not stored.
        """

    def put(self, digest: Digest, data: bytes) -> None:
        """Store the bytes, atomically; after the return a power cut does not lose them."""

    def assemble(self, digest: Digest, parts: Sequence[Digest]) -> None:
        """Store the blob that these stored parts make up, in order, as `put` would.

        It never holds the whole blob in memory, for a model may be larger than what is free.

        Raises:
            BundleError: a part is not stored, or the joined bytes have another digest; nothing is stored.
        """

    def delete(self, digest: Digest) -> None:
        """Forget the bytes, if they are there."""
