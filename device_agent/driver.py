"""Drives one model's update: writes the journal, then acts, then feeds the result back.

Only the agent's own thread calls `feed`; the action runs on a thread of its own, and its outcome comes back
through `post` with the number of the state that it belongs to, so that one that comes too late is dropped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from device_agent.adapters.journal import Entry, FileJournal
from device_agent.errors import StorageError
from device_agent.ports import Clock
from device_agent.update.data import UpdateData
from device_agent.update.events import Action, ActiveBroken, Done, Event, Failed, Offered, Restarted
from device_agent.update.machine import step
from fleet.errors import KedgeError
from fleet.trust.assignment import AssignedBundle
from fleet.wire.messages import UpdateEvent

_LOG: Final = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What an action came to, for the state with this serial number."""

    model: str
    serial: int
    event: Event


class Performer(Protocol):
    """Does what the machine asks for; `device_agent.installer.Installer` is the real one."""

    def start(self, active: AssignedBundle) -> None:
        """Load the active bundle, and let it answer.

        Raises:
            KedgeError: it cannot be read or loaded.
        """

    def perform(
        self, action: Action, data: UpdateData, cancelled: Callable[[], bool]
    ) -> Done | Failed | ActiveBroken:
        """Do a step; once `cancelled` says true, it ends early and its outcome does not matter."""


class Ties(NamedTuple):
    """What a driver is tied to.

    Attributes:
        report: keeps an event until the server has it.
        post: hands an outcome to the agent's own thread.
    """

    journal: FileJournal
    clock: Clock
    boot_id: str
    report: Callable[[UpdateEvent], None]
    post: Callable[[Outcome], None]


class Driver:
    """The update of one model."""

    def __init__(self, model: str, installer: Performer, ties: Ties) -> None:
        """Read the journal.

        Raises:
            StorageError: the journal cannot be read.
        """
        self._model: Final = model
        self._installer: Final = installer
        self._ties: Final = ties
        entry = ties.journal.load(model)
        self.data: UpdateData = entry.data
        self._unreported = entry.event
        self._told = self._unreported is None
        self._worker: threading.Thread | None = None
        self._cancel = threading.Event()

    def start(self, *, clean: bool) -> None:
        """Let the active bundle answer again, and go on where the journal says.

        Args:
            clean: whether the agent was asked to stop the last time.
        """
        self.tell()
        while self.data.active is not None and not self._answers(self.data.active):
            continue
        self.feed(Restarted(clean))

    def _answers(self, active: AssignedBundle) -> bool:
        """Let the active bundle answer; if it cannot, the one before it is the active one."""
        try:
            self._installer.start(active)
        except KedgeError as error:
            _LOG.warning("%s: the active bundle does not load: %s", self._model, error)
            self.feed(ActiveBroken(str(error)))
            return False
        return True

    def take(self, outcome: Outcome) -> None:
        """Feed an outcome unless it comes too late."""
        if outcome.serial == self.data.serial:
            self.feed(outcome.event)

    def feed(self, event: Event) -> None:
        """Make one step: journal first, then report, then act.

        Raises:
            StorageError: the journal cannot be written; nothing has changed, and the event may come again.
        """
        result = step(self.data, event)
        if result.data != self.data:
            told = self._event(result.data) if result.entered else self._unreported
            self._ties.journal.save(Entry(data=result.data, event=told))
            self.data, self._unreported = result.data, told
        if result.entered:
            _LOG.info("%s: %s %s", self._model, result.data.state.value, result.data.detail)
            self._told = False
            self.tell()
        if result.action is Action.TAKE_PENDING:
            if self.data.pending is not None:
                self._ties.post(Outcome(self._model, self.data.serial, Offered(self.data.pending)))
        elif result.action is not None:
            self._act(result.action)

    def tell(self) -> None:
        """Report the last change of state unless that is done; a full disk does not stop an update."""
        if self._told or self._unreported is None:
            return
        try:
            self._ties.report(self._unreported)
            self._told = True
        except StorageError as error:
            _LOG.warning("%s: not reported, will try again: %s", self._model, error)

    def stop(self) -> None:
        """Cancel what is under way, and wait for it."""
        self._cancel.set()
        if self._worker is not None:
            self._worker.join(10.0)

    def _act(self, action: Action) -> None:
        self._cancel.set()
        before, cancel, data = self._worker, threading.Event(), self.data
        self._cancel = cancel

        def work() -> None:
            if before is not None:
                before.join()
            self._ties.post(Outcome(self._model, data.serial, self._outcome(action, data, cancel)))

        self._worker = threading.Thread(target=work, name=f"update-{self._model}", daemon=True)
        self._worker.start()

    def _outcome(self, action: Action, data: UpdateData, cancel: threading.Event) -> Event:
        try:
            return self._installer.perform(action, data, cancel.is_set)
        except Exception as error:  # noqa: BLE001 - a fault of ours in a step must roll back too, and be reported
            _LOG.exception("%s: %s", self._model, action.value)
            return Failed("internal_error", f"{type(error).__name__}: {error}")

    def _event(self, data: UpdateData) -> UpdateEvent:
        subject = (
            data.candidate.bundle.digest if data.candidate else data.active.digest if data.active else ""
        )
        return UpdateEvent(
            id=self._ties.clock.unique(),
            rollout=data.rollout,
            model=self._model,
            bundle=subject,
            state=data.state,
            time=self._ties.clock.time(),
            boot_id=self._ties.boot_id,
            monotonic=self._ties.clock.monotonic(),
            reason=data.reason,
            detail=data.detail,
            measured=data.measured,
        )
