"""The agent's own thread: takes what happens, one thing at a time, and sees to what is due."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from device_agent import carrying
from device_agent.adapters.facts import SystemFacts, agent_version
from device_agent.adapters.inbox import Inbox
from device_agent.adapters.inbox import Outcome as Told
from device_agent.adapters.journal import FileJournal
from device_agent.adapters.mqtt import Message, MqttLink
from device_agent.adapters.notify import Notifier
from device_agent.adapters.outbox import Outbox
from device_agent.adapters.sent import Sent
from device_agent.adapters.trust_client import TrustClient
from device_agent.carrying import Carried
from device_agent.driver import Driver, Outcome, Ties
from device_agent.errors import StorageError
from device_agent.happenings import Arrivals, Arrived, Connected, Happening, Kit, Refused, Stop
from device_agent.installer import Installer, Site
from device_agent.observing import Offload, Telemetry
from device_agent.parting import Parting
from device_agent.ports import Clock
from device_agent.refusals import Pending, RefusalFilter
from device_agent.settings import Settings
from device_agent.stating import Statements
from device_agent.update.data import Offer
from device_agent.update.events import Offered
from device_agent.update.table import BUSY
from device_agent.uplink import Uplink
from device_agent.verifier import Result, Verifier
from fleet.errors import KedgeError, TrustError, WireError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle, Assignment
from fleet.wire import codec, topics
from fleet.wire.messages import Ack, Answer, Flush, Hello, RefusalEvent, Status

_LOG: Final = logging.getLogger(__name__)
#: Seconds between two reports that somebody wishes for.
_FLUSH_PAUSE: Final = 1.0
#: Seconds until a kit that the disk did not take is tried again.
_KIT_RETRY: Final = 5.0


class Parts(NamedTuple):
    """What the agent is made of."""

    device: DeviceId
    target: str
    boot_id: str
    settings: Settings
    clock: Clock
    link: MqttLink
    outbox: Outbox
    uplink: Uplink
    journal: FileJournal
    trust: TrustClient
    facts: SystemFacts
    telemetry: Telemetry
    offload: Offload
    notifier: Notifier
    site: Site
    statements: Statements
    parting: Parting
    inbox: Inbox
    sent: Sent


class Agent:
    """The agent. `post` may be called from any thread; everything else runs on its own."""

    def __init__(self, post: queue.SimpleQueue[Happening], parts: Parts, *, clean: bool) -> None:
        """Read every journal; `clean` when the agent was asked to stop the last time."""
        self._queue: Final = post
        self._arrivals: Final = Arrivals(post.put)
        self._parts: Final = parts
        self._clean: Final = clean
        self._ties: Final = Ties(
            journal=parts.journal,
            clock=parts.clock,
            boot_id=parts.boot_id,
            report=parts.uplink.put_event,
            post=post.put,
        )
        for said in parts.journal.set_damaged_aside():
            post.put(Refused("journal", "damaged", said))
        self.drivers: Final = {model: self._driver(model) for model in parts.journal.models()}
        self._verifier: Final = Verifier(parts.trust, parts.clock, self.release_counters, self._verified)
        self.connected = False
        self.malformed = 0
        self._told_waiting = 0
        self._refusals: Final = RefusalFilter()
        self._expired: Final[Pending[Refused]] = Pending()
        self._postponed: list[Happening] = []
        self._trouble = ""
        self._last_sign = 0.0
        self._flushed = -math.inf
        self._look_at_kit = 0.0  # not before; never while one is being taken
        self._thread: Final = threading.Thread(target=self._run, name="agent", daemon=True)

    def start(self) -> None:
        """Let the active bundles answer, connect, and begin to take what happens."""
        for driver in self.drivers.values():
            driver.start(clean=self._clean)
        kinds = {
            topics.command(self._parts.device): "command",
            topics.reply(self._parts.device): "reply",
        }
        self._parts.link.subscribe(list(kinds), lambda topic, data: self._arrivals.put(kinds[topic], data))
        self._parts.link.subscribe(
            [topics.assignment(self._parts.device)],
            lambda _topic, data: self._verifier.submit(data) if data else None,
        )
        self._thread.start()
        self._parts.link.start()

    def stop(self) -> None:
        """End: report the open windows, say goodbye, and leave the rest to the next start."""
        self._queue.put(Stop())
        self._thread.join()
        self._verifier.stop()
        for driver in self.drivers.values():
            driver.stop()
        self._survived(partial(self._report, 0.0))
        self._parts.link.stop(self.status(online=False))

    def release_counters(self) -> dict[str, int]:
        """Return the highest committed release counter by model."""
        return {model: driver.data.release_counter for model, driver in list(self.drivers.items())}

    def needed(self) -> list[AssignedBundle] | None:
        """Return the bundles that must stay on the device; None while one is being installed."""
        data = [driver.data for driver in list(self.drivers.values())]
        if self._parts.inbox.waiting or any(x.state in BUSY or x.pending is not None for x in data):
            return None
        return [bundle for x in data for bundle in x.needed]

    def held(self) -> list[Digest]:
        """Return the chunk indexes of the bundles on the device: a download copies what they share."""
        return [Digest(x.index) for driver in list(self.drivers.values()) for x in driver.data.needed]

    def status(self, *, online: bool) -> Message:
        """Return the retained status message."""
        status = Status(online=online, boot_id=self._parts.boot_id, time=self._parts.clock.time())
        return Message(topics.status(self._parts.device), codec.encode(status))

    # --- one thing at a time ------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                happening = self._queue.get(timeout=self._parts.settings.tick)
            except queue.Empty:
                happening = None
            if isinstance(happening, Stop):
                return
            if happening is not None and not self._survived(partial(self._take, happening)):
                self._postpone(happening)
            elif self._survived(self._tick):
                self._resume()

    def _survived(self, work: Callable[[], None]) -> bool:
        """Return whether the disk took what had to be kept; if not, it may later. Serving goes on."""
        try:
            work()
        except KedgeError as error:
            if str(error) != self._trouble:
                _LOG.warning("not done, will try again: %s", error)
            self._trouble = str(error)
            return False
        except Exception:  # noqa: BLE001 - who finds a fault in here must not end updates and reports with it
            _LOG.exception("what happened could not be taken, and is dropped")
        return True

    def _postpone(self, happening: Happening) -> None:
        if not isinstance(happening, Arrived | Refused):  # those come again by themselves
            self._postponed.append(happening)

    def _resume(self) -> None:
        """Take again what a full disk has kept from being done; each is safe to take twice."""
        waiting, self._postponed = self._postponed, []
        for happening in waiting:
            if self._survived(partial(self._take, happening)):
                self._trouble = ""
            else:
                self._postponed.append(happening)

    def _take(self, happening: Happening) -> None:
        if isinstance(happening, Outcome):
            self._outcome(happening)
        elif isinstance(happening, Arrived):
            self._arrivals.taken(happening)
            self._arrived(happening)
        elif isinstance(happening, Connected):
            self._connected(happening)
        elif isinstance(happening, Assignment):
            self._assigned(happening)
        elif isinstance(happening, Refused) and happening.reason == "expired":
            _LOG.info("too old, perhaps a newer one comes: %s", happening.detail)
            self._expired.hold(happening, self._parts.clock.monotonic())
        elif isinstance(happening, Refused):
            self._refused(happening)
        elif isinstance(happening, Kit):
            self._kit_taken(happening.result)

    def _outcome(self, outcome: Outcome) -> None:
        driver = self.drivers[outcome.model]
        before = driver.data.state
        driver.take(outcome)
        if driver.data.state is not before and not driver.data.installing:
            self._parts.statements.changed()
            if self.connected:
                self._introduce()  # the slots have changed

    def _connected(self, happening: Connected) -> None:
        self.connected = happening.up
        if happening.up:
            status = self.status(online=True)
            self._parts.link.publish(status.topic, status.payload, retain=True)
            self._introduce()
            self._parts.statements.changed()
            self._parts.uplink.reconnected()

    def _introduce(self) -> None:
        hello = self.hello()
        self._told_waiting = hello.outbox_bytes
        self._parts.link.publish(topics.hello(self._parts.device), codec.encode(hello))

    def hello(self) -> Hello:
        """Return how the device introduces itself."""
        parts = self._parts
        return Hello(
            boot_id=parts.boot_id,
            agent_version=agent_version(),
            target=parts.target,
            time=parts.clock.time(),
            monotonic=parts.clock.monotonic(),
            firmware=parts.facts.firmware(),
            slots=tuple(driver.data.slot for driver in list(self.drivers.values())),
            assignment_version=parts.trust.assignment_version,
            clock_untrusted=parts.trust.clock(parts.clock.now()).untrusted,
            outbox_bytes=parts.outbox.waiting_bytes(),
            gates=parts.facts.gates(),
        )

    def _arrived(self, arrived: Arrived) -> None:
        try:
            message = codec.DOWNLINK[arrived.kind](arrived.payload)
        except WireError as error:
            self.malformed += 1
            _LOG.warning("dropped a message: %.200s", error)
            return
        if isinstance(message, Ack):
            self._parts.parting.acknowledged(message.ids)
            self._parts.uplink.acknowledged(message.ids)
        elif isinstance(message, Answer):
            self._answered(message)
        elif isinstance(message, Flush):
            self._flush()

    def _answered(self, answer: Answer) -> None:
        self._parts.offload.answered(answer)
        self._parts.uplink.acknowledged((answer.id,))

    def _verified(self, result: Result) -> None:
        if isinstance(result, TrustError):
            self._queue.put(Refused("assignment", result.reason, str(result)))
        else:
            self._queue.put(result)

    def _assigned(self, assignment: Assignment) -> None:
        if assignment.version < self._parts.trust.assignment_version:
            return  # it had to wait, and a newer one did not
        self._expired.explain()
        if assignment.decommission:
            self._parts.parting.begin(assignment)
        if self._parts.parting.begun:
            return
        for bundle in assignment.targets:
            if bundle.model not in self.drivers:
                driver = self._driver(bundle.model)
                self.drivers[bundle.model] = driver
            offer = Offer(
                bundle=bundle,
                rollout=assignment.rollout,
                assignment_version=assignment.version,
                activate_before=assignment.activate_before,
                allow_rollback=assignment.allow_rollback,
                delivery=assignment.delivery,
                delta=assignment.deltas.get(bundle.model),
            )
            self.drivers[bundle.model].feed(Offered(offer))

    def _look_into_inbox(self) -> None:
        if self._parts.clock.monotonic() >= self._look_at_kit and self._parts.inbox.waiting:
            self._look_at_kit = math.inf
            self._verifier.submit_kit(self._take_kit)

    def _take_kit(self) -> None:
        """Verify the kit in the inbox, on the verifier's thread."""
        parts = self._parts
        try:
            now = parts.clock.now()
            result: Carried | KedgeError = carrying.take(
                parts.inbox, parts.site.store, parts.trust, parts.device, self.release_counters(), now
            )
        except KedgeError as error:
            result = error
        self._queue.put(Kit(result))

    def _kit_taken(self, result: Carried | KedgeError) -> None:
        """Follow what a kit says as if it had come from the broker; it stays in the inbox until then."""
        outcome = Told()
        if isinstance(result, Carried):
            self._assigned(result.assignment)
            for digest in result.reached:
                self._parts.uplink.acknowledged(self._parts.sent.forget(digest))
            for answer in result.answers:
                self._answered(answer)
            outcome = Told(version=result.assignment.version)
        elif isinstance(result, StorageError):
            _LOG.warning("the kit is not taken, will try again: %s", result)
            self._look_at_kit = self._parts.clock.monotonic() + _KIT_RETRY
            return
        else:
            reason = result.reason if isinstance(result, TrustError) else "bad_kit"
            self._refused(Refused("kit", reason, str(result)))
            outcome = Told(reason=reason, detail=str(result))
        self._parts.inbox.finish(outcome)
        self._look_at_kit = 0.0

    def _refused(self, refused: Refused) -> None:
        clock = self._parts.clock
        if not self._refusals.lets_through(refused, clock.monotonic()):
            return
        _LOG.warning("refused %s: %.500s", refused.what, refused.detail)
        held = self._parts.trust.held_timestamp() if refused.reason == "rollback" else b""
        self._parts.statements.refused(refused.what, refused.reason, refused.detail, held)
        self._parts.uplink.put_event(
            RefusalEvent(
                id=clock.unique(),
                what=refused.what,
                reason=refused.reason,
                detail=refused.detail,
                time=clock.time(),
                boot_id=self._parts.boot_id,
                monotonic=clock.monotonic(),
            )
        )

    def _tick(self) -> None:
        self._parts.parting.look()
        expired = self._expired.due(self._parts.clock.monotonic())
        if expired is not None:
            self._refused(expired)
        self._report(self._parts.settings.window)
        for driver in self.drivers.values():
            driver.tell()
        self._look_into_inbox()
        if self.connected:
            self._parts.uplink.pump()
            self._parts.statements.send_due(self.hello)
            if self._told_waiting and not self._parts.outbox.waiting_bytes():
                self._introduce()  # the server was told of a queue that is no more
        else:
            self._parts.statements.leave_due(self.hello)
        interval, now = self._parts.notifier.interval, self._parts.clock.monotonic()
        if interval is not None and now - self._last_sign >= interval:
            self._last_sign = now
            self._parts.notifier.tell("WATCHDOG=1")

    def _flush(self) -> None:
        """Report the open windows; nobody has to sign that wish, so not as often as somebody may have it."""
        now = self._parts.clock.monotonic()
        if now - self._flushed >= _FLUSH_PAUSE:
            self._flushed = now
            self._report(0.0)

    def _report(self, length: float) -> None:
        for report in self._parts.telemetry.reports(length):
            self._parts.uplink.put_report(report)

    def _driver(self, model: str) -> Driver:
        return Driver(model, Installer(model, self._parts.site), self._ties)
