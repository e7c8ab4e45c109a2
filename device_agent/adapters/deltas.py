"""Takes the shorter way to a bundle where there is one, and never twice where it has proven wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from device_agent.adapters.download import Downloaded, Downloader, OnRefusal, Stop
from device_agent.adapters.patching import Patcher
from device_agent.errors import StorageError, UnreachableError
from device_agent.ports import BlobStore
from fleet.bundle import chunks
from fleet.errors import BundleError, DeltaError
from fleet.ids import Digest
from fleet.trust.delta_offer import DeltaOffer

_LOG: Final = logging.getLogger(__name__)
#: So often a patch is begun: a power cut may interrupt it, and what kills the agent must end some time.
MOST_TRIES: Final = 3
#: Patches that are remembered, the newest.
_REMEMBERED: Final = 64


class Tries:
    """Remembers over restarts how often each patch was begun."""

    def __init__(self, path: Path) -> None:
        """Use this file; one that cannot be read is as good as none."""
        self._path: Final = path

    def spent(self, index: Digest) -> bool:
        """Return whether a patch is not to be tried again."""
        return self._read().get(index.hex, 0) >= MOST_TRIES

    def count(self, index: Digest, tries: int = 1) -> None:
        """Remember that a patch is begun, or, with many tries, that it is of no use.

        Raises:
            StorageError: the disk does not take it.
        """
        known = self._read()
        known[index.hex] = known.pop(index.hex, 0) + tries
        newest = dict(list(known.items())[-_REMEMBERED:])
        files.write(self._path, msgspec.json.encode(newest))

    def _read(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError):
            return {}


class Deltas:
    """Brings patches and applies them. What goes wrong is told, and left to the whole download."""

    def __init__(
        self,
        store: BlobStore,
        free_bytes: Callable[[], int],
        tries: Path,
        refused: OnRefusal,
        *,
        keep: bool = False,
    ) -> None:
        """Use this store.

        Args:
            store: where the device's bundles are.
            free_bytes: what the disk has left.
            tries: the file that remembers them.
            refused: told of patches that do not make what they promise.
            keep: leave applied patches in the store, for neighbours that they are served to; what nobody
                needs any more is garbage there like anything else.
        """
        self._keep: Final = keep
        self._store: Final = store
        self._free_bytes: Final = free_bytes
        self._tries: Final = Tries(tries)
        self._refused: Final = refused

    def bring(
        self, offer: DeltaOffer, downloader: Downloader, stop: Stop, rate: int = 0
    ) -> Downloaded | None:
        """Make what a delta makes of a bundle's files; what it does not make is left to be downloaded.

        Args:
            offer: from a verified assignment.
            downloader: brings the patch.
            stop: asked now and then; true ends it.
            rate: bytes a second; 0 for all that the line gives.

        Returns:
            What it took to bring the patch; None when it did not come.

        Raises:
            StorageError: the disk does not give or take it.
            UnreachableError: `stop` said so.
        """
        index = Digest(offer.index)
        if not self._store.has(Digest(offer.base)) or self._tries.spent(index):
            return None
        try:
            took = downloader.fetch_parcel(index, offer.index_size, stop, rate)
        except UnreachableError as error:
            if stop():
                raise
            _LOG.info("delta: %s", error)
            return None
        except BundleError as error:
            self._give_up(index, str(error))
            return None
        self._apply(index, stop)
        return took

    def _apply(self, index: Digest, stop: Stop) -> None:
        patcher = Patcher(self._store, self._free_bytes)
        patches: list[Digest] = []
        self._tries.count(index)
        try:
            patches += [Digest(blob) for blob in chunks.decode(self._store.get(index)).blobs]
            for patch in patches:
                patcher.apply(patch, stop)
        except (DeltaError, BundleError) as error:
            self._give_up(index, str(error))
        except MemoryError:
            self._give_up(index, "not enough memory to apply it")
        finally:
            for digest in () if self._keep else (*patches, index):
                self._forget(digest)

    def _give_up(self, index: Digest, why: str) -> None:
        self._tries.count(index, MOST_TRIES)
        self._refused("bad_delta", f"{index}: {why}")

    def _forget(self, digest: Digest) -> None:
        """Free the room of a patch; what cannot be freed now is garbage later."""
        try:
            self._store.delete(digest)
        except (OSError, StorageError) as error:
            _LOG.info("delta: %s", error)
