"""What the agent needs from the world: the broker's link, bytes by digest, clocks, device runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from fleet.ids import Digest

if TYPE_CHECKING:  # a third of the start-up time of what only verifies, enrols or asks
    import numpy.typing as npt

#: A tensor of any of the datatypes that the Open Inference Protocol names.
Array: TypeAlias = "npt.NDArray[Any]"

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


class PartialBlob(Protocol):
    """A blob that comes in pieces, in any order; never more than a piece of it is in memory."""

    @property
    def resumed(self) -> bool:
        """Whether an earlier process, or call, may have written some of it."""

    def write(self, offset: int, data: bytes) -> None:
        """Write a piece; a power cut may lose it until `sync` returns, a killed process does not.

        Raises:
            StorageError: the disk does not take it.
        """

    def read(self, offset: int, size: int) -> bytes:
        """Return what lies there: what was written, or zeros."""

    def sync(self) -> None:
        """Make what was written survive a power cut."""

    def finish(self) -> None:
        """Check the whole, and have it stored, atomically and durably.

        Raises:
            BundleError: the bytes have another digest; nothing is stored, and what was written is gone.
            StorageError: the disk does not take it.
        """

    def close(self) -> None:
        """Leave it to be gone on with later; after `finish` nothing."""


class BlobStore(Protocol):
    """Content-addressed bytes that survive a power cut."""

    def has(self, digest: Digest) -> bool:
        """Return whether these bytes are stored, whole."""

    def intact(self, digest: Digest) -> bool:
        """Return whether these bytes are stored and still have their digest; it reads all of them."""

    def get(self, digest: Digest) -> bytes:
        """Return the bytes.

        Raises:
            BundleError: they are not stored.
        """

    def put(self, digest: Digest, data: bytes) -> None:
        """Store the bytes, atomically; after the return a power cut does not lose them."""

    def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """Return a piece of stored bytes; fewer where they end before.

        Raises:
            BundleError: they are not stored.
        """

    def begin(self, digest: Digest, size: int) -> PartialBlob:
        """Go on with a blob that comes in pieces, or begin it; nobody else writes it meanwhile.

        What an earlier process wrote before it was killed is still there, and is to be checked.
        """

    def delete(self, digest: Digest) -> None:
        """Forget the bytes, if they are there."""


class Wanted(NamedTuple):
    """A chunk that is asked for, and where it lies in a blob, for sources that know blobs."""

    digest: Digest
    size: int
    blob: Digest
    offset: int


class Arrival(NamedTuple):
    """What a source has to say of a chunk.

    Attributes:
        source: the source's name.
        data: unverified bytes; None when they do not come from here.
        trouble: why not, when that is about the whole source; "" when it just does not have the chunk.
    """

    source: str
    digest: Digest
    data: bytes | None
    trouble: str = ""


#: Called on a thread of the source's own; it never blocks.
OnArrival: TypeAlias = Callable[[Arrival], None]


class ChunkSource(Protocol):
    """Where chunks come from. Nothing that it gives is believed before it is verified.

    A source never raises when it cannot be reached: it says so by an `Arrival`, or says nothing, and what
    was asked for is asked for again, here or elsewhere.
    """

    name: str

    def holds(self, index: Digest) -> bool | None:
        """Return whether the chunks of this index, and it itself, are to be had here; None: unknown."""

    def ask(self, chunks: Sequence[Wanted], on_arrival: OnArrival) -> None:
        """Have these brought; return without waiting."""

    def drop(self, digests: Sequence[Digest]) -> None:
        """Stop to bring these: they have come, or are wanted no more. One may still arrive."""

    def rest(self) -> None:
        """Free what was kept for the next chunks: the download is over."""


class DeviceKey(Protocol):
    """The device's identity key, wherever it lies."""

    def public_pem(self) -> str:
        """Return the public half (SubjectPublicKeyInfo, PEM).

        Raises:
            StateError: the key cannot be used.
        """

    def sign(self, data: bytes) -> bytes:
        """Return a signature: ECDSA over P-256 with SHA-256, DER.

        Raises:
            StateError: the key cannot be used.
        """

    def destroy(self) -> None:
        """Forget the key for good."""


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
