"""The audit log's witness: a signed note of its newest entry, in a file outside the database.

Whoever may write the database, and no more, could take entries off the log's end and set the head back: the
chain would look whole. The note says how far it reached. It is signed with a key of its own so that a copy,
in an export or in another system, can be told from a forgery by somebody without the key.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from server.durable import write_file
from server.errors import SettingsError
from server.services.people.audit_links import Seen

LOG: Final = logging.getLogger("kedge.audit")
#: Where the note lies, and its key among the keys.
NOTE: Final = "audit-head.json"
KEY: Final = "audit.pem"


class Witness:
    """Keeps the note. Every method may be called from any thread."""

    def __init__(self, data: Path, keys: Path) -> None:
        """Read the key, or make one.

        Args:
            data: folder of the note.
            keys: folder of the key.

        Raises:
            SettingsError: the key's file holds none.
        """
        self._path: Final = data / NOTE
        self._key: Final = _key(keys / KEY)
        self._public: Final = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        self._lock: Final = threading.Lock()

    def note(self, entries: Sequence[Mapping[str, object]], is_there: Callable[[Seen], bool]) -> None:
        """Note the last of these entries, unless a later one is noted already.

        Args:
            entries: as they were committed, in order.
            is_there: whether an entry is in the log. A note of one that is gone stays: it is the evidence.
        """
        last = msgspec.convert({name: entries[-1][name] for name in ("id", "digest")}, _Last)
        unsigned = Seen(entry=last.id, digest=last.digest)
        signature = self._key.sign(unsigned.signed()).hex()
        seen = msgspec.structs.replace(unsigned, key=self._public, signature=signature)
        with self._lock:
            known = self.read()
            if known is not None and known.entry >= seen.entry:
                return
            if known is not None and known.digest != entries[0]["previous"] and not is_there(known):
                LOG.error("the audit log's entry %d is gone: kedge audit verify", known.entry)
                return
            try:
                write_file(self._path, msgspec.json.encode(seen), mode=0o600)
            except OSError as error:
                # The change itself is committed: the next one brings the note up to date.
                LOG.error("%s: the audit log's head is not noted: %s", self._path, error.strerror)  # noqa: TRY400 - no bug

    def read(self) -> Seen | None:
        """Return what was noted, None when there is no note that this key signed."""
        try:
            seen = msgspec.json.decode(self._path.read_bytes(), type=Seen)
        except FileNotFoundError:
            return None
        except ValueError:
            LOG.warning("%s: no readable note of the audit log's head", self._path)
            return None
        return seen if seen.key == self._public and seen.holds() else None


class _Last(msgspec.Struct):
    id: int
    digest: str


def _key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(path, pem, mode=0o600)
        return made
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path}: no readable key ({error})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path}: expected an ed25519 key, got {type(key).__name__}")
    return key
