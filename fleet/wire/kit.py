"""Offline kits: a folder that people carry, its layout, and the two kinds of files that are ours alone.

::

    README.txt                    for the technician
    kit.json                      what is in it; written last, so a kit without it is not whole
    trust/<metadata file>         root chain, a timestamp for kits, snapshot, targets and delegated targets
    assignments/<device>.json     the director's word to each device
    receipts/<device>.json        which reports have reached the server, signed by the director
    answers/<device>.msgpack      the cloud's answers to hard requests; the receipt has their digest
    blobs/<sha256>                every file of the bundles once, by its SHA-256 in hex
    reports/<device>/<sha256>     what devices send back, signed by each

Nothing in a kit is believed for being there: metadata and assignments are verified as if a broker had sent
them, blobs have their digests, reports and receipts their signatures. Names are safe on FAT file systems.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from fleet.errors import WireError
from fleet.ids import DeviceId, Digest, plain

README: Final = "README.txt"
INDEX: Final = "kit.json"
TRUST: Final = "trust"
ASSIGNMENTS: Final = "assignments"
RECEIPTS: Final = "receipts"
ANSWERS: Final = "answers"
BLOBS: Final = "blobs"
REPORTS: Final = "reports"

#: A kit's format; another number is a kit for a newer agent.
FORMAT: Final = 1
#: A kit never holds longer: snapshots and assignments are signed for so long.
MAX_DAYS: Final = 30
#: Most bytes of `kit.json`: some 100,000 devices.
INDEX_LIMIT: Final = 32 * 1024 * 1024
#: Most bytes of a file of reports; a device writes several.
REPORTS_LIMIT: Final = 8 * 1024 * 1024
#: Most bytes of a device's answers in one kit; the rest comes with the next.
ANSWERS_LIMIT: Final = 1024 * 1024


class KitIndex(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a kit. It is not signed, and nothing but what people are told depends on it.

    Attributes:
        made, holds_until: seconds since the Unix epoch.
        devices: each device's id to what it is to run, as "model version".
        blobs: digests to sizes in bytes.
    """

    format: int
    made: float
    holds_until: float
    devices: dict[str, tuple[str, ...]]
    blobs: dict[str, int]


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """One message that the device would have published: the last level of its topic, and its bytes."""

    kind: str
    payload: bytes


class Reports(msgspec.Struct, frozen=True, kw_only=True):
    """What a device sends back in one file."""

    device: str
    records: tuple[Waiting, ...]


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud has answered to one device's hard requests.

    Attributes:
        answers: `fleet.wire.messages.Answer` each, as it would come over MQTT.
    """

    answers: tuple[bytes, ...]


class SignedReports(msgspec.Struct, frozen=True, kw_only=True):
    """A file of reports as it travels.

    Attributes:
        reports: `Reports` as MessagePack: the very bytes that were signed.
        time: whole seconds since the Unix epoch, as the device believes; signed too.
        signature: of the device's identity key (`fleet.trust.proof`), for the purpose "kit-reports".
    """

    reports: bytes
    time: int
    signature: bytes

    @property
    def digest(self) -> Digest:
        """What the file is known by: the server's receipt names it so."""
        return Digest.of(self.reports)


S = TypeVar("S", KitIndex, Reports, SignedReports, Answers)


def assignment(device: DeviceId) -> tuple[str, str]:
    """Return where a device's assignment lies."""
    return ASSIGNMENTS, f"{device}.json"


def receipt(device: DeviceId) -> tuple[str, str]:
    """Return where a device's receipt lies."""
    return RECEIPTS, f"{device}.json"


def answers(device: DeviceId) -> tuple[str, str]:
    """Return where a device's answers lie."""
    return ANSWERS, f"{device}.msgpack"


def blob(digest: Digest) -> tuple[str, str]:
    """Return where a blob lies."""
    return BLOBS, digest.hex


def encode(value: KitIndex | Reports | SignedReports | Answers) -> bytes:
    """Return a file's bytes: JSON for the index, which people may read, MessagePack for the others."""
    if isinstance(value, KitIndex):
        return msgspec.json.format(msgspec.json.encode(value, enc_hook=plain), indent=1)
    return msgspec.msgpack.encode(value, enc_hook=plain)


def decode(kind: type[S], data: bytes) -> S:
    """Read a file.

    Raises:
        WireError: it is too long or malformed.
    """
    limit = INDEX_LIMIT if kind is KitIndex else REPORTS_LIMIT
    if len(data) > limit:
        raise WireError(f"kit: expected at most {limit} bytes, got {len(data)}")
    decoder = msgspec.json.decode if kind is KitIndex else msgspec.msgpack.decode
    try:
        found: S = decoder(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"kit: {error}") from error
    return found


def read_index(data: bytes) -> KitIndex:
    """Read `kit.json`.

    Raises:
        WireError: it is too long, malformed, or of another format.
    """
    index = decode(KitIndex, data)
    if index.format != FORMAT:
        raise WireError(f"kit: expected format {FORMAT}, got {index.format}")
    return index
