"""What a site gateway has put on its site's broker, over restarts: the chunks of each parcel."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from fleet.ids import Digest, plain


class SiteLedger:
    """One file, replaced before the first chunk of a parcel is published and after its last is cleared."""

    def __init__(self, path: Path) -> None:
        """Read the file; a damaged one is as good as none: what nobody clears is only room lost."""
        self._path: Final = path
        self._chunks: dict[str, dict[str, int]] = {}
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            self._chunks = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, int]])

    def parcels(self) -> dict[str, dict[Digest, int]]:
        """Return the chunks of each parcel, with their sizes, by the parcel's index."""
        return {
            index: {Digest(digest): size for digest, size in chunks.items()}
            for index, chunks in self._chunks.items()
        }

    def add(self, index: str, chunks: dict[Digest, int]) -> None:
        """Remember a parcel.

        Raises:
            StorageError: the disk does not take it.
        """
        self._chunks[index] = {str(digest): size for digest, size in chunks.items()}
        self._write()

    def remove(self, index: str) -> None:
        """Forget a parcel.

        Raises:
            StorageError: the disk does not take it.
        """
        if self._chunks.pop(index, None) is not None:
            self._write()

    def _write(self) -> None:
        files.make_folder(self._path.parent)
        files.write(self._path, msgspec.json.encode(self._chunks, enc_hook=plain))
