"""Wipes a device's folder after it was decommissioned: keys first, for a power cut may come at any time."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from device_agent.adapters import device_key, files
from device_agent.adapters.state import StateFolder
from device_agent.errors import StateError, StorageError

_LOG: Final = logging.getLogger(__name__)


def wipe(state: StateFolder) -> None:
    """Remove everything but the mark that says so; what is gone already stays gone.

    Deleting is all that can be done from here: flash memory keeps what is written over for a while. A key in
    hardware is destroyed there.

    Raises:
        StorageError: the disk does not let go of something; to be tried again.
    """
    state.mark_decommissioned()
    _destroy_key(state)
    secret = [state.tls, state.tls_next]
    try:
        for path in (*secret, *(path for path in state.everything() if path not in secret)):
            _remove(path)
        files.sync_folder(state.root)
    except OSError as error:
        raise StorageError(f"{error.filename or state.root}: {error.strerror}") from error


def _destroy_key(state: StateFolder) -> None:
    if not state.key.exists():
        return
    try:
        device_key.open_key(state.key).destroy()
    except StateError as error:
        # What is wiped must not stay for a token that is gone, or a file that is damaged.
        _LOG.warning("the identity key is not destroyed: %s", error)
    _remove(state.key)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
