"""A site gateway: brings what the neighbours were assigned over the WAN once, and serves it on their broker.

The site's broker is bridged to the fleet's: assignments and metadata come to it by themselves, chunks do not.
The gateway reads its neighbours' assignments there, verifies who signed them, so that nobody on the site can
make it fetch what is nobody's, downloads each bundle through its own connection as if it were for itself, and
publishes the chunks, retained. A gateway that lies changes nothing: every chunk has its digest.

It keeps no state but a ledger of what it has published and the bytes in its store, so it may be killed at any
time: assignments are retained, and it begins anew with them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime
from functools import cache
from typing import Final, NamedTuple

from device_agent.adapters.download import Downloader
from device_agent.adapters.mqtt import MqttLink
from device_agent.adapters.site_ledger import SiteLedger
from device_agent.adapters.store import FileStore
from device_agent.adapters.trust_client import TrustClient
from device_agent.errors import UnreachableError
from device_agent.update.site_plan import Parcel, SitePlan, fitting
from fleet.bundle import chunks
from fleet.errors import BundleError, KedgeError, TrustError, WireError
from fleet.ids import Digest
from fleet.trust import assignment
from fleet.trust.assignment import AssignedBundle
from fleet.wire import codec, topics
from fleet.wire.messages import RefusalEvent

_LOG: Final = logging.getLogger(__name__)
#: Seconds between looks at what is still to be done.
_AGAIN: Final = 2.0
#: Seconds to wait for a retained index before the broker counts as having lost its parcel.
_PATIENCE: Final = 2.0
#: Seconds to wait for the broker's acknowledgement of one chunk.
_PUBLISHED: Final = 30.0
#: Seconds without a new assignment after which those that are retained have all come.
_SETTLED: Final = 3.0
#: Chunks that neighbours have missed and that are published again at a time.
_MENDED: Final = 16
#: Chunks that are remembered as missed: a neighbour may say so of whatever it likes.
_MOST_MISSED: Final = 4096


class SiteParts(NamedTuple):
    """What a gateway is made of.

    Attributes:
        link: the connection to the site's broker.
        trust: verifies the neighbours' assignments, with metadata from the site's broker.
        store: the device's own: what it serves and what it runs is there once.
        downloader: brings bundles over the device's own connection.
        downloading: held by the one download of this device that runs.
        budget: bytes that the site's broker may retain.
    """

    link: MqttLink
    trust: TrustClient
    store: FileStore
    downloader: Callable[[], Downloader]
    downloading: threading.Lock
    ledger: SiteLedger
    budget: int
    now: Callable[[], datetime]


class SiteGateway:
    """Serves neighbours on a thread of its own."""

    def __init__(self, parts: SiteParts) -> None:
        """Prepare; nothing is asked for before `start`."""
        self._parts: Final = parts
        self._plan: Final = SitePlan()
        self._changed: Final = threading.Condition()
        self._arrived: Final[dict[str, bytes]] = {}
        self._missed: Final[dict[Digest, None]] = {}
        self._reconnected = False
        self._stopped = False
        self._served: Final[dict[str, dict[Digest, int]]] = {}
        self._held: Final[dict[str, AssignedBundle]] = {}
        self._over: set[str] = set()
        self._fetching = False
        self._last_news = time.monotonic()
        self.published_bytes = 0
        self._thread: Final = threading.Thread(target=self._run, name="site", daemon=True)

    def start(self) -> None:
        """Connect to the site's broker, and serve."""
        link = self._parts.link
        link.subscribe([topics.assignments()], self._assigned)
        link.subscribe([topics.uplink_filter("event")], self._event)
        self._thread.start()
        link.start()

    def stop(self) -> None:
        """End."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(10.0)
        self._parts.link.stop()

    def connected(self, up: bool) -> None:
        """Note that the connection to the site's broker came or went: it may have lost what it retained."""
        if up:
            with self._changed:
                self._reconnected = True
                self._changed.notify_all()

    def certificate_renewed(self) -> None:
        """Show the certificate that is on disk now from the next connection on.

        Raises:
            StateError: it is unusable.
        """
        self._parts.link.certificate_renewed()

    def needed(self) -> Collection[AssignedBundle] | None:
        """Return the bundles whose bytes have to stay; None while one is being fetched."""
        return None if self._fetching else list(self._held.values())

    def status(self) -> dict[str, object]:
        """Return where it stands, for the agent's status page."""
        return {
            "connected": self._parts.link.connected,
            "served": sorted(self._served),
            "over_budget": sorted(self._over),
            "retained_bytes": sum({d: n for x in list(self._served.values()) for d, n in x.items()}.values()),
            "published_bytes": self.published_bytes,
        }

    # --- what comes, on the link's thread -----------------------------------------------------------

    def _assigned(self, topic: str, payload: bytes) -> None:
        with self._changed:
            self._arrived[topic] = payload
            self._changed.notify_all()

    def _event(self, _topic: str, payload: bytes) -> None:
        with contextlib.suppress(WireError):
            event = codec.UPLINK["event"](payload)
            if isinstance(event, RefusalEvent) and event.what == "chunk":
                digest = Digest(event.detail.partition(": ")[0])
                with self._changed:
                    if len(self._missed) >= _MOST_MISSED:
                        return  # who truly misses something says so again
                    self._missed[digest] = None
                    self._changed.notify_all()

    # --- on its own thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news, _AGAIN)
                if self._stopped:
                    return
                arrived, missed = dict(self._arrived), list(self._missed)[:_MENDED]
                self._arrived.clear()
                for digest in missed:
                    del self._missed[digest]
                if self._reconnected:
                    self._reconnected = False
                    self._served.clear()
            try:
                self._work(arrived, missed)
            except KedgeError as error:
                _LOG.info("site: not done, will try again: %s", error)
                with self._changed:
                    self._arrived.update({t: p for t, p in arrived.items() if t not in self._arrived})
                    self._changed.wait_for(lambda: self._stopped, _AGAIN)

    def _has_news(self) -> bool:
        return self._stopped or bool(self._arrived) or bool(self._missed) or self._reconnected

    def _work(self, arrived: dict[str, bytes], missed: list[Digest]) -> None:
        if arrived or not self._parts.link.connected:
            self._last_news = time.monotonic()
        if arrived:
            self._follow(arrived)
        for digest in missed:
            self._plan.ask(digest)
        if time.monotonic() - self._last_news > _SETTLED:
            self._clear()
        self._mend(missed)
        settled = self._served.keys() | self._over
        waiting = [parcel for parcel in self._plan.wanted() if parcel.index not in settled]
        # What is here already needs no line, which may be down.
        for parcel in sorted(waiting, key=lambda x: not self._is_here(x)):
            self._serve(parcel)

    def _follow(self, arrived: dict[str, bytes]) -> None:
        """Verify assignments, all with the same metadata.

        Raises:
            UnreachableError: there is no metadata to verify them with.
            TrustError: what there is does not verify.
        """
        trusted = self._parts.trust.refresh(self._parts.now())
        for topic, data in arrived.items():
            try:
                device = topics.parse_assignment(topic)
                if not data:
                    self._plan.leave(device)
                    continue
                found = assignment.read_any(trusted, data, device)
            except (TrustError, WireError) as error:
                _LOG.warning("site: what came on %.120s is not to be followed: %s", topic, error)
                continue
            if self._plan.assign(found):
                self._over = set()  # what had no room may have some now

    def _serve(self, parcel: Parcel) -> None:
        """Fetch a parcel, and publish it unless an earlier life has, and it is still there.

        Raises:
            UnreachableError: it does not come now, or the site's broker is gone.
        """
        before = parcel.index in self._parts.ledger.parcels()
        room = cache(lambda: self._has_room(parcel))

        def stop() -> bool:
            # The index comes first, and says how large all of it is.
            return self._stopped or (self._parts.store.has(Digest(parcel.index)) and not room())

        try:
            self._fetch(parcel, stop)
        except UnreachableError:
            if self._stopped or not stop():
                raise
        if stop():
            self._leave_out(parcel)
            return
        sizes = self._sizes(parcel)
        self._parts.ledger.add(parcel.index, sizes)
        if not (before and self._retained(parcel)):
            self._publish(parcel)
        self._served[parcel.index] = sizes

    def _is_here(self, parcel: Parcel) -> bool:
        store = self._parts.store
        if not store.has(Digest(parcel.index)):
            return False
        return all(store.has(Digest(blob)) for blob in self._listed(parcel.index).blobs)

    def _has_room(self, parcel: Parcel) -> bool:
        wanted = {index: dict(sizes) for index, sizes in self._parts.ledger.parcels().items()}
        return parcel.index in fitting({**wanted, parcel.index: self._sizes(parcel)}, self._parts.budget)

    def _leave_out(self, parcel: Parcel) -> None:
        if not self._stopped:
            _LOG.warning("site: no room for %s within %d bytes", parcel.index, self._parts.budget)
            self._over.add(parcel.index)
            self._held.pop(parcel.index, None)

    def _fetch(self, parcel: Parcel, stop: Callable[[], bool]) -> None:
        self._fetching = True
        try:
            with self._parts.downloading:
                downloader = self._parts.downloader()
                if parcel.bundle is not None:
                    downloader.fetch(parcel.bundle, stop, parcel.rate)
                    self._held[parcel.index] = parcel.bundle
                else:
                    downloader.fetch_parcel(Digest(parcel.index), parcel.index_size, stop, parcel.rate)
        finally:
            self._fetching = False

    def _listed(self, index: str) -> chunks.ChunkIndex:
        return chunks.decode(self._parts.store.get(Digest(index)))

    def _sizes(self, parcel: Parcel) -> dict[Digest, int]:
        listed = self._listed(parcel.index).blobs.values()
        sizes = {piece.digest: piece.size for pieces in listed for piece in pieces}
        return {**sizes, Digest(parcel.index): parcel.index_size}

    def _retained(self, parcel: Parcel) -> bool:
        """Return whether the broker still has the parcel: its index was published last."""
        came = threading.Event()
        topic = topics.chunk(Digest(parcel.index))
        self._parts.link.subscribe([topic], lambda _topic, payload: came.set() if payload else None)
        try:
            return came.wait(_PATIENCE)
        finally:
            self._parts.link.unsubscribe([topic])

    def _publish(self, parcel: Parcel, only: Digest | None = None) -> None:
        """Publish every chunk, each acknowledged by the broker before the next, and the index last.

        Args:
            parcel: what to publish.
            only: just this one of its chunks.
        """
        done: set[Digest] = set()
        for blob, pieces in self._listed(parcel.index).blobs.items():
            offset = 0
            for piece in pieces:
                if piece.digest not in done and only in (None, piece.digest):
                    self._put(piece.digest, self._parts.store.read(Digest(blob), offset, piece.size))
                    done.add(piece.digest)
                offset += piece.size
        if only not in (None, Digest(parcel.index)):
            return
        self._put(Digest(parcel.index), self._parts.store.get(Digest(parcel.index)))

    def _put(self, digest: Digest, data: bytes) -> None:
        if self._stopped:
            raise UnreachableError("site: stopped")
        if Digest.of(data) != digest:
            raise BundleError(f"site: {digest} was altered on the disk")
        self._parts.link.put(topics.chunk(digest), data, _PUBLISHED)
        self.published_bytes += len(data)

    def _clear(self) -> None:
        """Clear the chunks of what no neighbour is to run any more."""
        wanted = {parcel.index for parcel in self._plan.wanted()}
        ledger = self._parts.ledger.parcels()
        leaving = [index for index in ledger if index not in wanted]
        if not wanted or not leaving:
            return  # without a single assignment, it is more likely that the bridge is not up yet
        kept = {digest for index in ledger if index in wanted for digest in ledger[index]}
        for index in leaving:
            for digest in ledger[index]:
                if digest not in kept:
                    self._parts.link.put(topics.chunk(digest), b"", _PUBLISHED)
            self._parts.ledger.remove(index)
            self._served.pop(index, None)
            self._held.pop(index, None)
        self._over = set()

    def _mend(self, missed: list[Digest]) -> None:
        """Publish again what a neighbour has missed or got spoilt, of what is served."""
        for digest in missed:
            found = [x for x in self._plan.wanted() if digest in self._served.get(x.index, ())]
            for parcel in found[:1]:
                self._publish(parcel, only=digest)
