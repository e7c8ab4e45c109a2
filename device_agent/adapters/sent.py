"""Which messages went onto a stick in which file: a receipt for the file lets the outbox forget them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from device_agent.adapters import files
from device_agent.errors import StorageError
from fleet.ids import Digest
from fleet.wire import receipt


class Sent:
    """One small file per file of reports, named as that is; the newest ones are kept."""

    def __init__(self, folder: Path) -> None:
        """Use this folder; it is made when something is put into it."""
        self._folder: Final = folder

    def remember(self, digest: Digest, ids: Sequence[str]) -> None:
        """Keep the ids of the messages in a file of reports.

        Raises:
            StorageError: the disk does not take it.
        """
        files.make_folder(self._folder)
        files.write(self._folder / digest.hex, msgspec.json.encode(list(ids)))
        files.give_to_owner(self._folder)
        by_age = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[receipt.MOST :]:
            path.unlink(missing_ok=True)

    def forget(self, digest: Digest) -> tuple[str, ...]:
        """Return the ids of the messages in a file, once; none when it is not known.

        Raises:
            StorageError: the disk does not give them.
        """
        path = self._folder / digest.hex
        try:
            ids = msgspec.json.decode(path.read_bytes(), type=tuple[str, ...])
            path.unlink()
        except FileNotFoundError:
            return ()
        except msgspec.DecodeError:
            path.unlink(missing_ok=True)
            return ()  # then they go with the next stick once more, and change nothing at the server
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        return ids
