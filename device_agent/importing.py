"""`kedge agent import`: checks a kit on a stick, hands it to the agent, and puts reports onto the stick.

All of it works beside a running agent: what is read of the agent's state is replaced atomically by it, and
what is written goes into the inbox.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from device_agent import stating
from device_agent.adapters import device_key, outbox
from device_agent.adapters.inbox import Inbox, Outcome
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.kit import KitFetcher, KitFolder
from device_agent.adapters.outbox import Record
from device_agent.adapters.sent import Sent
from device_agent.adapters.state import Identity, StateFolder
from device_agent.adapters.trust_client import TrustClient
from device_agent.carrying import DISK_RESERVE, Carried, verify
from device_agent.errors import KitError, StorageError
from device_agent.update.data import UpdateData
from fleet.bundle import chunks, manifest
from fleet.errors import TrustError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import kit, receipt
from fleet.wire.kit import Reports, Waiting
from fleet.wire.messages import UpdateEvent

#: Bytes of messages in one file of reports.
_FILE_BYTES: Final = 4 * 1024 * 1024
_POLL: Final = 0.2
#: Seconds in which an event that the journal has comes to the outbox.
_REPORTED: Final = 3.0
#: What a receipt lets the device forget; a hard request waits for its answer, or until nobody wants it.
_FORGOTTEN: Final = ("event", "report")


class Imported(NamedTuple):
    """What a kit brought to this device.

    Attributes:
        version: of its assignment.
        bundles: what the device is to run.
        copied, known: bytes that were copied now, and that were here already.
    """

    device: DeviceId
    version: int
    bundles: tuple[AssignedBundle, ...]
    copied: int
    known: int


class _Recording:
    """Remembers the metadata files that were needed."""

    def __init__(self, fetcher: KitFetcher) -> None:
        self._fetcher: Final = fetcher
        self.files: Final[dict[tuple[str, str], bytes]] = {}

    def fetch(self, name: str, limit: int) -> bytes | None:
        """Return a file of the repository, None when the kit does not have it."""
        data = self._fetcher.fetch(name, limit)
        if data is not None:
            self.files[kit.TRUST, name] = data
        return data


def bring_in(
    state: StateFolder, folder: KitFolder, now: datetime, tell: Callable[[str], None] = lambda _line: None
) -> Imported:
    """Check a kit in full, copy what this device needs of it, and hand it to the agent.

    Until the last step the device is as it was; a call that was cut off is gone on with by the next.

    Args:
        state: this device's state folder.
        folder: the kit.
        now: what the clock says.
        tell: told of each step, for a person.

    Raises:
        KitError: it is no kit for this device, not whole, or cannot be read.
        TrustError: it must not be followed; `reason` says why.
        BundleError: a bundle contradicts itself.
        StorageError: the disk has no room, or does not take it.
    """
    identity = state.identity()
    device = DeviceId(identity.device_id)
    about = folder.index()
    if str(device) not in about.devices:
        some = ", ".join(sorted(about.devices)[:5]) or "nobody"
        raise KitError(f"{folder.root}: there is nothing for {device} in this kit; it is for {some}")
    inbox = Inbox(state.inbox)
    recording = _Recording(KitFetcher(folder))
    carried = _verified(state, identity, folder, recording, now)
    wanted, known = _wanted(state, folder, carried.assignment.targets)
    missing = inbox.keep_only(wanted)
    _check_room(inbox, sum(missing.values()))
    for digest, size in missing.items():
        tell(f"copying {digest.hex[:12]} ({size:,} bytes)")
        inbox.take_blob(folder, digest, size)
    small = dict(recording.files)
    for parts, limit in (
        (kit.assignment(device), kit.REPORTS_LIMIT),
        (kit.receipt(device), receipt.LIMIT),
        (kit.answers(device), kit.ANSWERS_LIMIT),
    ):
        data = folder.read(parts, limit)
        if data is not None:
            small[parts] = data
    inbox.commit(small)
    if carried.reached:
        folder.forget_reports(device, carried.reached)
    return Imported(
        device,
        carried.assignment.version,
        carried.assignment.targets,
        sum(missing.values()),
        known + sum(wanted.values()) - sum(missing.values()),
    )


def _verified(
    state: StateFolder, identity: Identity, folder: KitFolder, fetcher: _Recording, now: datetime
) -> Carried:
    """Check what is signed on a copy of the trusted state: the agent's own is the agent's."""
    journal = FileJournal(state.journal)
    counters = {model: journal.load(model).data.release_counter for model in journal.models()}
    device = DeviceId(identity.device_id)
    with tempfile.TemporaryDirectory(prefix="kedge-import-") as scratch:
        copy = Path(scratch) / "trust"
        try:
            shutil.copytree(state.trust, copy)
        except (OSError, shutil.Error) as error:
            raise StorageError(f"{state.trust}: {error}") from error
        client = TrustClient(copy, fetcher, device, identity.target, carried=True)
        return verify(folder, client, device, counters, now)


def _wanted(
    state: StateFolder, folder: KitFolder, bundles: tuple[AssignedBundle, ...]
) -> tuple[dict[Digest, int], int]:
    """Return the blobs that this device lacks, with their sizes, and the bytes that it has."""
    needed: dict[Digest, int] = {}
    for bundle in bundles:
        digest = Digest(bundle.digest)
        parts = manifest.decode(_small(state, folder, digest, bundle.manifest_size, manifest.MANIFEST_LIMIT))
        _small(state, folder, Digest(bundle.index), bundle.index_size, chunks.INDEX_LIMIT)
        needed |= {digest: bundle.manifest_size, Digest(bundle.index): bundle.index_size}
        needed |= {Digest(layer.digest): layer.size for layer in parts.for_device()}
    here = {digest: size for digest, size in needed.items() if state.blob(digest).is_file()}
    return {digest: size for digest, size in needed.items() if digest not in here}, sum(here.values())


def _small(state: StateFolder, folder: KitFolder, digest: Digest, size: int, limit: int) -> bytes:
    """Return a small blob of the device or of the kit, verified."""
    if size > limit:
        raise TrustError(f"{digest}: expected at most {limit} bytes, got {size}", reason="too_large")
    try:
        data: bytes | None = state.blob(digest).read_bytes()
    except FileNotFoundError:
        data = folder.read(kit.blob(digest), size)
    if data is None:
        raise KitError(f"{folder.root.joinpath(*kit.blob(digest))}: the kit does not have it")
    if len(data) != size or Digest.of(data) != digest:
        raise KitError(f"{folder.root.joinpath(*kit.blob(digest))}: its bytes are not what its name says")
    return data


def _check_room(inbox: Inbox, size: int) -> None:
    free = inbox.free_bytes()
    if free < size + DISK_RESERVE:
        raise StorageError(f"disk: expected {size + DISK_RESERVE:,} free bytes for this kit, got {free:,}")


# --- what the agent makes of it ---------------------------------------------------------------------


def wait_for_outcome(state: StateFolder, seconds: float) -> Outcome | None:
    """Wait until the agent has looked at the kit; return None when it has not, in that time."""
    inbox, deadline = Inbox(state.inbox), time.monotonic() + seconds
    while (outcome := inbox.outcome()) is None and time.monotonic() < deadline:
        time.sleep(_POLL)
    return outcome


def wait_for_end(
    state: StateFolder, imported: Imported, seconds: float, tell: Callable[[str], None]
) -> list[UpdateData]:
    """Wait until no model of the kit is being installed any more; return where each stands.

    Args:
        state: this device's state folder.
        imported: what was imported.
        seconds: no longer than that.
        tell: told of each change, for a person.
    """
    journal, deadline = FileJournal(state.journal), time.monotonic() + seconds
    told: dict[str, str] = {}
    while True:
        entries = [journal.load(bundle.model) for bundle in imported.bundles]
        data = [entry.data for entry in entries]
        for one in data:
            if told.get(one.model) != one.state.value:
                told[one.model] = one.state.value
                tell(f"{one.model}: {one.state.value}")
        ended = not any(one.installing or one.pending for one in data)
        if ended:
            _wait_for_reports(state, [entry.event for entry in entries])
        if ended or time.monotonic() > deadline:
            return data
        time.sleep(_POLL)


def _wait_for_reports(state: StateFolder, events: Sequence[UpdateEvent | None]) -> None:
    """Wait a moment for the last events: they come from the journal, and leave where there is a network."""
    wanted = {event.id for event in events if event is not None}
    deadline = time.monotonic() + _REPORTED
    while time.monotonic() < deadline:
        if wanted <= {record.id for record in outbox.waiting(state.outbox, 0.0)}:
            return
        time.sleep(_POLL)


# --- reports -----------------------------------------------------------------------------------------


def send_back(state: StateFolder, folder: KitFolder, now: datetime) -> list[Path]:
    """Put onto the stick, signed, what the device has to report; it keeps it until a receipt comes.

    Raises:
        KitError: the stick does not take it.
        StateError: the device's key cannot be used.
        StorageError: the disk does not give it.
    """
    device = DeviceId(state.identity().device_id)
    key, sent = device_key.signer(state.key), Sent(state.sent)
    written: list[Path] = []
    for batch in _files(_records(state, now)):
        records = tuple(Waiting(record.kind, record.payload) for record in batch)
        signed = receipt.sign_reports(Reports(device=str(device), records=records), now, key)
        # Remembered first: a receipt for what nobody remembers would be of no use.
        sent.remember(signed.digest, [record.id for record in batch if record.kind in _FORGOTTEN])
        written.append(folder.write_reports(device, signed))
    return written


def _records(state: StateFolder, now: datetime) -> list[Record]:
    """Return what waits in the outbox, and what the device last said of itself with its signature."""
    records = outbox.waiting(state.outbox, now.timestamp()) if state.outbox.exists() else []
    try:
        return [*records, Record("", "manifest", stating.left_by(state.statements).read_bytes())]
    except FileNotFoundError:
        return records


def _files(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and size + len(record.payload) > _FILE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.payload)
    if batch:
        yield batch
