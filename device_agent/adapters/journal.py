"""The update machine's journal: one file per model, replaced atomically before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from device_agent.errors import StorageError
from device_agent.update.data import UpdateData
from fleet.ids import Name
from fleet.wire.messages import UpdateEvent


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is written: the data, and the event that tells the server of it.

    The event stands here too, for a power cut may come between the journal and the outbox.
    """

    data: UpdateData
    event: UpdateEvent | None = None


class FileJournal:
    """Journal entries in a folder."""

    def __init__(self, folder: Path) -> None:
        """Use this folder, made when it is missing."""
        self._folder: Final = folder
        files.make_folder(folder)

    def models(self) -> list[str]:
        """Return the models that have an entry."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def load(self, model: str) -> Entry:
        """Return a model's entry, a fresh one when there is none.

        Raises:
            StorageError: the file cannot be read, or was damaged.
        """
        path = self._path(model)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Entry)
        except FileNotFoundError:
            return Entry(data=UpdateData(model=model))
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: {error}") from error

    def save(self, entry: Entry) -> None:
        """Replace a model's entry; after the return a power cut does not lose it.

        Raises:
            StorageError: the disk does not take it.
        """
        files.write(self._path(entry.data.model), msgspec.json.encode(entry))

    def _path(self, model: str) -> Path:
        return self._folder / f"{Name(model)}.json"
