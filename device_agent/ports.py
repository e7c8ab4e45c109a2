"""What the agent needs from the world: the broker's link, bytes by digest, clocks, device runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from fleet.ids import Digest

#: A tensor of any of the datatypes that the Open Inference Protocol names.
Array: TypeAlias = npt.NDArray[Any]

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


class MetadataFetcher(Protocol):
    """Where TUF metadata files come from. Nothing that it gives is believed before it is verified."""

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return a file of the repository, None when the repository does not have it.

        Raises:
            TrustError: it is longer than `limit` bytes (reason "too_large").
            UnreachableError: the repository could not be asked, or was too slow.
        """


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


class Clock(Protocol):
    """The device's clocks, and names that never repeat."""

    def now(self) -> datetime:
        """Return the wall clock's time, aware, in UTC."""

    def time(self) -> float:
        """Return the wall clock's seconds since the Unix epoch."""

    def monotonic(self) -> float:
        """Return seconds that never go back while the agent runs."""

    def unique(self) -> str:
        """Return an id that nobody else makes."""


class LoadedModel(Protocol):
    """A model that a runtime has loaded; `infer` may be called from several threads at once."""

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            RuntimeFailure: the runtime refuses the inputs or fails.
        """

    def close(self) -> None:
        """Free what the model takes; nothing calls it afterwards."""


class Runtime(Protocol):
    """A library that runs models on this device."""

    name: str

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:
        """Load a model from a file.

        Args:
            artifact: the bundle's artifact.
            threads: for one request; 0 lets the runtime choose.

        Raises:
            RuntimeFailure: it cannot be loaded.
        """
