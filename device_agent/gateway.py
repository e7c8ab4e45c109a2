"""A site gateway: brings what the neighbours were assigned over the WAN once, and serves it on their broker.

The site's broker is bridged to the fleet's: assignments and metadata come to it by themselves, chunks do not.
The gateway reads its neighbours' assignments there, verifies who signed them, so that nobody on the site can
make it fetch what is nobody's, downloads each bundle through its own connection as if it were for itself, and
publishes the chunks, retained, as they come in (`device_agent.site_shelf`). A gateway that lies changes
nothing: every chunk has its digest.

It keeps no state but a ledger of what it has published and the bytes in its store, so it may be killed at any
time: assignments are retained, and it begins anew with them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Final, NamedTuple

from device_agent.adapters.download import Downloader
from device_agent.adapters.site_ledger import SiteLedger
from device_agent.adapters.trust_client import TrustClient
from device_agent.errors import UnreachableError
from device_agent.ports import BlobStore
from device_agent.site_shelf import Shelf, SiteLink
from device_agent.update.site_plan import Parcel, SitePlan
from fleet.errors import BundleError, KedgeError, TrustError, WireError
from fleet.ids import Digest
from fleet.trust import assignment
from fleet.trust.assignment import ASSIGNMENT_LIMIT, AssignedBundle
from fleet.trust.metadata_set import TrustedMetadata
from fleet.wire import codec, topics
from fleet.wire.messages import RefusalEvent

_LOG: Final = logging.getLogger(__name__)
#: Seconds between looks at what is still to be done.
_AGAIN: Final = 2.0
#: The same while something comes in, after metadata did not come: to wait for it holds the download up.
_MUCH_LATER: Final = 60.0
#: Seconds to wait for a download that this device makes for itself, before looking at the neighbours again.
_BUSY: Final = 1.0
#: Seconds without a new assignment after which those that are retained have all come.
_SETTLED: Final = 3.0
#: Chunks that neighbours have missed and that are published again at a time.
_MENDED: Final = 16
#: Assignments that wait to be verified, and their bytes.
_MOST_ARRIVED: Final = 4096
_MOST_ARRIVED_BYTES: Final = 32 * 1024 * 1024
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

    link: SiteLink
    trust: TrustClient
    store: BlobStore
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
        self._shelf: Final = Shelf(parts.link, parts.store, parts.ledger, parts.budget)
        self._changed: Final = threading.Condition()
        self._arrived: Final[dict[str, bytes]] = {}
        self._followed: Final[dict[str, bytes]] = {}
        self._missed: Final[dict[Digest, None]] = {}
        self._reconnected = False
        self._stopped = False
        self._served: Final[dict[str, dict[Digest, int]]] = {}
        self._held: Final[dict[str, AssignedBundle]] = {}
        self._over: set[str] = set()
        self._fetching = False
        self._last_news = time.monotonic()
        self._look_again = 0.0
        self._trouble = ""
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
        self._shelf.stop()
        self._thread.join(10.0)
        self._parts.link.stop()

    def connected(self, up: bool) -> None:
        """Note that the connection to the site's broker came or went: it may have lost what it retained."""
        if up:
            self._shelf.reconnected()
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

    def pass_on(self, digest: Digest, data: bytes) -> None:
        """Take a chunk that a download of this device has verified: neighbours may wait for it."""
        self._shelf.pass_on(digest, data)

    def status(self) -> dict[str, object]:
        """Return where it stands, for the agent's status page."""
        return {
            "connected": self._parts.link.connected,
            "served": sorted(self._served),
            "over_budget": sorted(self._over),
            "retained_bytes": sum({d: n for x in list(self._served.values()) for d, n in x.items()}.values()),
            "published_bytes": self._shelf.published_bytes,
        }

    # --- what comes, on the link's thread -----------------------------------------------------------

    def _assigned(self, topic: str, payload: bytes) -> None:
        with self._changed:
            known = self._followed.get(topic) == payload or self._arrived.get(topic) == payload
            waiting = len(payload) + sum(map(len, self._arrived.values()))
            full = len(self._arrived) >= _MOST_ARRIVED or waiting > _MOST_ARRIVED_BYTES
            if known or len(payload) > ASSIGNMENT_LIMIT or full:
                return  # a bridge may repeat, and whoever has the site's broker may say anything
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
                if self._reconnected:
                    self._reconnected = False
                    self._served.clear()
            try:
                self._work()
                self._trouble = ""
            except KedgeError as error:
                self._tell(str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, _AGAIN)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            _LOG.info("site: not done, will try again: %s", trouble)
        self._trouble = trouble

    def _has_news(self) -> bool:
        return self._stopped or bool(self._arrived) or bool(self._missed) or self._reconnected

    def _work(self) -> None:
        if not self._parts.link.connected:
            self._last_news = time.monotonic()
        self._follow()
        self._look_after()
        if time.monotonic() - self._last_news > _SETTLED:
            self._clear()
        settled = self._served.keys() | self._over
        waiting = [parcel for parcel in self._plan.wanted() if parcel.index not in settled]
        self._shelf.expect(waiting)
        # What is here already needs no line, which may be down.
        self._serve_all(sorted(waiting, key=lambda x: not self._shelf.is_here(x)))

    def _serve_all(self, parcels: Sequence[Parcel]) -> None:
        """Serve what can be served: one that nobody has any more is not to hold the others up.

        Raises:
            KedgeError: the last that went wrong.
        """
        trouble: KedgeError | None = None
        for parcel in parcels:
            try:
                if not self._is_over(parcel):
                    self._serve(parcel)
            except KedgeError as error:  # noqa: PERF203 - one parcel takes seconds
                trouble = error
        if trouble is not None:
            raise trouble

    def _follow(self) -> None:
        """Verify the assignments that have come, all with the same metadata.

        Raises:
            UnreachableError: there is no metadata to verify them with; they are kept.
            TrustError: what there is does not verify; they are kept.
            StorageError: the disk does not take the metadata; they are kept.
        """
        with self._changed:
            arrived = dict(self._arrived)
        if not arrived:
            return
        self._last_news = time.monotonic()
        trusted = self._parts.trust.refresh(self._parts.now())
        with self._changed:
            for topic in [topic for topic, data in arrived.items() if self._arrived[topic] is data]:
                del self._arrived[topic]
        self._take(trusted, arrived)

    def _take(self, trusted: TrustedMetadata, arrived: dict[str, bytes]) -> None:
        refused: list[str] = []
        for topic, data in arrived.items():
            try:
                device = topics.parse_assignment(topic)
                if not data:
                    self._followed.pop(topic, None)
                    self._plan.leave(device)
                    continue
                found = assignment.read_any(trusted, data, device)
            except (TrustError, WireError) as error:
                refused.append(f"{topic:.120}: {error}")
                continue
            self._followed[topic] = data
            if self._plan.assign(found):
                self._over = set()  # what had no room may have some now
        if refused:
            _LOG.warning("site: %d assignments are not to be followed, such as %s", len(refused), refused[0])

    def _follow_meanwhile(self) -> None:
        """Follow what has come while something large comes in, which may be wanted no more."""
        if time.monotonic() < self._look_again:
            return
        pause = _AGAIN
        try:
            self._follow()
        except KedgeError as error:
            self._tell(str(error))
            pause = _MUCH_LATER
        self._look_again = time.monotonic() + pause

    def _look_after(self) -> None:
        """Publish again what neighbours have missed or got spoilt, also while something large comes in."""
        with self._changed:
            missed = list(self._missed)[:_MENDED]
            for digest in missed:
                del self._missed[digest]
        for digest in missed:
            self._plan.ask(digest)
            try:
                self._shelf.mend(
                    digest, [x for x in self._plan.wanted() if digest in self._served.get(x.index, ())]
                )
            except UnreachableError as error:
                self._tell(str(error))  # who still misses it says so again
            except BundleError as error:
                self._tell(str(error))
                self._served.clear()  # every file is looked at again, and what is damaged is fetched

    def _serve(self, parcel: Parcel) -> None:
        """Fetch a parcel, and have all of it on the site's broker, unless it is superseded meanwhile.

        Raises:
            UnreachableError: it does not come now, or the site's broker is gone.
        """
        index, shelf = Digest(parcel.index), self._shelf
        room = cache(lambda: shelf.has_room(parcel))

        def stop() -> bool:
            self._look_after()
            self._follow_meanwhile()
            # The index comes first, and says how large all of it is.
            return self._is_over(parcel) or (self._parts.store.has(index) and not room())

        there = shelf.known(parcel) and shelf.retained(parcel)
        if not there and self._parts.store.has(index):
            with contextlib.suppress(UnreachableError):  # bringing it needs no broker of the site
                shelf.begin(parcel)
        try:
            self._fetch(parcel, stop)
        except UnreachableError:
            if self._stopped or not stop():
                raise
        if self._is_over(parcel):
            return
        if not room():
            self._leave_out(parcel)
            return
        if not there:
            shelf.begin(parcel)
            shelf.complete(parcel)
        self._served[parcel.index] = shelf.sizes(parcel)

    def _is_over(self, parcel: Parcel) -> bool:
        """Return whether a parcel is not to be brought any further: no neighbour wants it any more."""
        return self._stopped or all(x.index != parcel.index for x in self._plan.wanted())

    def _leave_out(self, parcel: Parcel) -> None:
        _LOG.warning("site: no room for %s within %d bytes", parcel.index, self._parts.budget)
        self._over.add(parcel.index)
        self._held.pop(parcel.index, None)

    def _fetch(self, parcel: Parcel, stop: Callable[[], bool]) -> None:
        self._fetching = True
        try:
            if not self._parts.downloading.acquire(timeout=_BUSY):
                raise UnreachableError("site: this device is downloading for itself")
            try:
                self._bring(parcel, stop)
            finally:
                self._parts.downloading.release()
        finally:
            self._fetching = False

    def _bring(self, parcel: Parcel, stop: Callable[[], bool]) -> None:
        downloader = self._parts.downloader()
        if parcel.bundle is not None:
            downloader.fetch(parcel.bundle, stop, parcel.rate)
            self._held[parcel.index] = parcel.bundle
        else:
            downloader.fetch_parcel(Digest(parcel.index), parcel.index_size, stop, parcel.rate)

    def _clear(self) -> None:
        """Clear the chunks of what no neighbour is to run any more."""
        wanted = {parcel.index for parcel in self._plan.wanted()}
        if not wanted:
            return  # without a single assignment, it is more likely that the bridge is not up yet
        if self._shelf.clear(wanted):
            self._over = set()
        for index in self._served.keys() - wanted:
            del self._served[index]
        for index in self._held.keys() - wanted:  # also what came whole, and was never put on the broker
            del self._held[index]
