"""The update machine's journal: one file per model, replaced atomically before anything is done."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from device_agent.errors import StorageError
from device_agent.update.data import UpdateData
from fleet.ids import Digest, Name
from fleet.wire.messages import UpdateEvent

_LOG: Final = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is written: the data, and the event that tells the server of it.

    The event stands here too, for a power cut may come between the journal and the outbox.
    """

    data: UpdateData
    event: UpdateEvent | None = None


class FileJournal:
    """Journal entries in a folder, each with its digest; of every model the one before is kept too.

    A disk may spoil what it was given. Then the entry before counts: it is what a power cut a moment earlier
    would have left, and the machine goes on from there.
    """

    def __init__(self, folder: Path) -> None:
        """Use this folder, made when it is missing."""
        self._folder: Final = folder
        files.make_folder(folder)

    def models(self) -> list[str]:
        """Return the models that have an entry."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def load(self, model: str) -> Entry:
        """Return a model's newest entry that is whole, a fresh one when there is none.

        Raises:
            StorageError: all there is was damaged, or cannot be read.
        """
        path = self._path(model)
        if not path.exists():
            return Entry(data=UpdateData(model=model))
        try:
            return _read(path)
        except StorageError as error:
            if not self._before(path).exists():
                raise
            _LOG.warning("%s; the entry before it counts", error)
            return _read(self._before(path))

    def damage(self, model: str) -> str:
        """Return what is wrong with a model's entries though one of them can be read, "" when nothing is."""
        path = self._path(model)
        newest, before = _trouble(path), _trouble(self._before(path))
        if newest:
            return f"{newest}; the entry before it counts"
        return f"{before}; nothing stands by for the newest" if before else ""

    def save(self, entry: Entry) -> None:
        """Replace a model's entry; after the return a power cut does not lose it.

        Raises:
            StorageError: the disk does not take it.
        """
        path, data = self._path(entry.data.model), msgspec.json.encode(entry)
        if path.exists():
            files.hard_link(self._before(path), path)
        files.write(path, Digest.of(data).hex.encode() + b"\n" + data)

    def set_damaged_aside(self) -> list[str]:
        """Keep damaged entries out of the way, so that one model's harms no other; say what was wrong.

        Raises:
            StorageError: the disk does not take it.
        """
        return [said for model in self.models() if (said := self._set_aside(model))]

    def _set_aside(self, model: str) -> str:
        try:
            self.load(model)
        except StorageError as error:
            path = self._path(model)
            files.rename(path, path.with_suffix(".damaged"))
            self._before(path).unlink(missing_ok=True)
            return str(error)
        return ""

    @staticmethod
    def _before(path: Path) -> Path:
        return path.with_suffix(".before")

    def _path(self, model: str) -> Path:
        return self._folder / f"{Name(model)}.json"


def _trouble(path: Path) -> str:
    try:
        if path.exists():
            _read(path)
    except StorageError as error:
        return str(error)
    return ""


def _read(path: Path) -> Entry:
    try:
        digest, _, data = path.read_bytes().partition(b"\n")
        if digest != Digest.of(data).hex.encode():
            raise StorageError(f"{path}: damaged: it has not the digest that it was written with")
        return msgspec.json.decode(data, type=Entry)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: {error}") from error
