"""Whether an audit log, from the database or from an export, is the one that was written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.db.audit_chain import FIELDS, GENESIS, canonical, digest
from server.errors import InvalidError


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that was there.

    Attributes:
        key, signature: Ed25519, in hex; the signature is over the canonical JSON of entry and digest.
    """

    entry: int
    digest: str
    key: str = ""
    signature: str = ""

    def signed(self) -> bytes:
        """Return the bytes that the signature is over."""
        return canonical({"entry": self.entry, "digest": self.digest})

    def holds(self) -> bool:
        """Return whether the signature is the key's."""
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key))
            key.verify(bytes.fromhex(self.signature), self.signed())
        except (ValueError, InvalidSignature):
            return False
        return True


class Links:
    """Follows the chain from its beginning, and keeps the first thing that is wrong."""

    def __init__(self, seen: Seen | None) -> None:
        """Begin; `seen` is an entry that must turn up."""
        self.broken = ""
        self.count = 0
        self.head = 0
        self.previous = GENESIS
        self._seen: Final = seen
        self._found = seen is None or seen.entry == 0

    def add(self, entry: Mapping[str, object]) -> None:
        """Look at the next entry, which has a "digest" beside what that covers."""
        self.count += 1
        number, told = int(str(entry["id"])), str(entry["digest"])
        if not self.broken and digest(entry) != told:
            self.broken = f"entry {number}: its content is not what was written"
        if not self.broken and entry["previous"] != self.previous:
            self.broken = f"entry {number}: the one before it is not entry {self.head} as it was written"
        if self._seen is not None and number == self._seen.entry:
            self._found = told == self._seen.digest
        self.head, self.previous = number, told

    def ends_at(self, head: Seen) -> str:
        """Return what is wrong with where the chain ends, or ""."""
        if self.head < head.entry:
            return f"entry {head.entry}: it is missing at the end, the last one is {self.head}"
        if self.head > head.entry or self.previous != head.digest:
            return f"entry {self.head}: it was not added by this server; the last one is {head.entry}"
        return ""

    def unseen(self) -> str:
        """Return what is wrong where the entry that must turn up did not, or ""."""
        if self._found or self._seen is None:
            return ""
        return f"entry {self._seen.entry}: it was noted outside the database, and is not there as it was"


class ExportState(msgspec.Struct, frozen=True, kw_only=True):
    """What an export shows by itself.

    Attributes:
        broken: the first thing that is wrong; "" when all is well.
        entries: how many there are.
        key: public key, in hex, that signed for the end; "" when nobody did. Compare it with the server's.
    """

    broken: str
    entries: int
    key: str


def check_export(lines: Iterable[bytes]) -> ExportState:
    """Check an export: every entry, and that it reaches as far as its signed head says.

    Raises:
        InvalidError: it is no export.
    """
    links, seen = Links(None), None
    digests: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        told = _object(line, number)
        if "head" in told:
            seen = _head(told, number)
            continue
        if missing := [name for name in (*FIELDS, "digest") if name not in told]:
            raise InvalidError(f"line {number}: expected an audit entry, {', '.join(missing)} is missing")
        links.add(told)
        digests[links.head] = links.previous
    if seen is None:
        return ExportState(broken=links.broken, entries=links.count, key="")
    end = "" if seen.holds() else "the end: its signature is not of the key that it names"
    # Entries that came while the export was written stand after the signed one.
    if not end and digests.get(seen.entry) != seen.digest:
        end = f"entry {seen.entry}: it was signed for, and is not there as it was"
    return ExportState(broken=links.broken or end, entries=links.count, key=seen.key)


def _object(line: bytes, number: int) -> dict[str, object]:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise InvalidError(f"line {number}: expected JSON: {error}") from error
    if not isinstance(told, dict):
        raise InvalidError(f"line {number}: expected a JSON object")
    return told


def _head(told: Mapping[str, object], number: int) -> Seen:
    try:
        return msgspec.convert(told["head"], Seen)
    except msgspec.ValidationError as error:
        raise InvalidError(f"line {number}: {error}") from error
