"""Takes a kit that lies in the inbox: verified as what a broker sends is, its blobs moved into the store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

from device_agent.adapters.inbox import Inbox
from device_agent.adapters.kit import KitFetcher, KitFolder
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from device_agent.errors import KitError
from fleet.bundle import manifest
from fleet.errors import BundleError, WireError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import ASSIGNMENT_LIMIT, AssignedBundle, Assignment
from fleet.wire import codec, kit, receipt
from fleet.wire.kit import Answers
from fleet.wire.messages import Answer
from fleet.wire.receipt import Receipt

#: Never take the last of the disk.
DISK_RESERVE: Final = 16 * 1024 * 1024


class Carried(NamedTuple):
    """What a kit brought.

    Attributes:
        reached: files of reports that the server has.
        answers: the cloud's, to hard requests of this device.
    """

    assignment: Assignment
    reached: tuple[Digest, ...]
    answers: tuple[Answer, ...] = ()


def verify(
    folder: KitFolder, trust: TrustClient, device: DeviceId, counters: Mapping[str, int], now: datetime
) -> Carried:
    """Check all that is signed in a kit.

    Args:
        folder: the kit.
        trust: reads its metadata from that kit (`TrustClient.reading_kit`).
        device: this device.
        counters: model to the highest release counter that the device has committed.
        now: what the device's clock says.

    Raises:
        KitError: it has nothing for this device, or cannot be read.
        TrustError: it must not be followed; `reason` says why.
        StorageError: the disk does not take or give the trusted state.
    """
    data = folder.read(kit.assignment(device), ASSIGNMENT_LIMIT)
    if data is None:
        raise KitError(f"{folder.root}: there is nothing for {device} in this kit")
    accepted = trust.accept(data, counters, now)
    signed = folder.read(kit.receipt(device), receipt.LIMIT)
    said = receipt.verify(trust.refresh(now), signed, device) if signed is not None else Receipt()
    return Carried(accepted, said.reports, _answers(folder, device, said.answers))


def _answers(folder: KitFolder, device: DeviceId, digest: Digest | None) -> tuple[Answer, ...]:
    """Return the answers that a receipt names.

    Raises:
        KitError: they are not there, or not as the receipt names them, or unreadable.
    """
    if digest is None:
        return ()
    data = folder.read(kit.answers(device), kit.ANSWERS_LIMIT)
    if data is None or Digest.of(data) != digest:
        raise KitError(f"{folder.root.joinpath(*kit.answers(device))}: expected what the receipt names")
    found: list[Answer] = []
    try:
        for one in kit.decode(Answers, data).answers:
            answer = codec.DOWNLINK["reply"](one)
            found += [answer] if isinstance(answer, Answer) else []
    except WireError as error:
        raise KitError(f"{folder.root.joinpath(*kit.answers(device))}: {error}") from error
    return tuple(found)


def take(
    inbox: Inbox,
    store: FileStore,
    trust: TrustClient,
    device: DeviceId,
    counters: Mapping[str, int],
    now: datetime,
) -> Carried:
    """Verify the kit in the inbox, and move what it brings into the store.

    It may be called again after a power cut at any point: what was moved is moved.

    Raises:
        KitError: it has nothing for this device.
        TrustError: it must not be followed.
        BundleError: a blob was altered, or one is missing.
        StorageError: the disk does not take or give it.
    """
    folder = inbox.kit()
    carried = verify(folder, trust.reading_kit(KitFetcher(folder)), device, counters, now)
    for digest in inbox.blobs():
        inbox.move_blob(digest, store.path(digest))
    for bundle in carried.assignment.targets:
        _check_whole(bundle, store)
    return carried


def _check_whole(bundle: AssignedBundle, store: FileStore) -> None:
    parts = manifest.decode(store.get(Digest(bundle.digest)))
    for digest in (Digest(bundle.index), *(Digest(x.digest) for x in parts.for_device())):
        if not store.has(digest):
            raise BundleError(f"kit: {digest} of {bundle.path} is not in it, nor on this device")
