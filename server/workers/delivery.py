"""The workers that move rollouts on, keep signatures fresh, and put everything on the broker."""

from __future__ import annotations

import math
import threading
import time
from typing import Final

from server.db.engine import Database
from server.ports.messaging import Connection
from server.services.director.assignments import Assignments
from server.services.director.publishing import AssignmentPublisher
from server.services.director.signing import AssignmentSigner
from server.services.director.wanted import Wanted
from server.services.releases.distribution import Distribution
from server.services.releases.projects import Projects
from server.services.releases.releases import Releases
from server.services.rollouts.ticker import RolloutTicker
from server.services.trust.signing import SigningService
from server.workers.supervisor import Worker

#: How often signatures are looked at.
REFRESH_SECONDS: Final = 600.0
#: How often what the broker retains is looked at, though nothing is known to have changed.
ARRANGE_SECONDS: Final = 15.0


class Delivery:
    """Publishes chunks, then trust metadata, then assignments: nothing is named before it is there."""

    def __init__(
        self,
        connection: Connection,
        database: Database,
        signing: SigningService,
        distribution: Distribution,
        wanted: Wanted,
        *,
        releases: Releases,
        projects: Projects,
        assignments: Assignments,
        signer: AssignmentSigner,
        outgoing: AssignmentPublisher,
        rollouts: RolloutTicker,
        tick_seconds: float,
    ) -> None:
        """Prepare the workers; nothing runs yet."""
        self._connection: Final = connection
        self._database: Final = database
        self._signing: Final = signing
        self._projects: Final = projects
        self._releases: Final = releases
        self._distribution: Final = distribution
        self._wanted: Final = wanted
        self._assignments: Final = assignments
        self._signer: Final = signer
        self._outgoing: Final = outgoing
        self._rollouts: Final = rollouts
        self._reconnected: Final = threading.Event()
        self._changed: Final = threading.Event()
        self._looked = -math.inf
        self.publisher: Final = Worker("publisher", self.publish, tick_seconds)
        self.ticker: Final = Worker("rollouts", self.tick, tick_seconds)
        self.refresher: Final = Worker("trust", self.refresh, REFRESH_SECONDS)
        connection.on_connected(self._on_connected)

    def _on_connected(self) -> None:
        self._reconnected.set()
        self.wake()

    def wake(self) -> None:
        """Have what changed put on the broker now."""
        self._changed.set()
        self.publisher.wake()

    def publish(self) -> None:
        """Put on the broker what is not there yet."""
        if not self._connection.connected:
            return  # health says so already
        if self._reconnected.is_set():
            self._reconnected.clear()
            self._publish_again()
        self._arrange()
        self._distribution.mend()
        self._distribution.publish_metadata(self._signing.files())
        # What is signed goes out first: a signer that refuses, for its clock is wrong, does not hold it up.
        while self._outgoing.publish_pending() + self._signer.sign_pending():
            pass

    def _arrange(self) -> None:
        """Look at what devices need when something has changed, and from time to time."""
        now = time.monotonic()
        if not self._changed.is_set() and now - self._looked < ARRANGE_SECONDS:
            return
        self._changed.clear()
        try:
            self._distribution.arrange(self._wanted.parcels())
        except BaseException:
            self._changed.set()
            raise
        self._looked = now

    def _publish_again(self) -> None:
        """After each connect: the broker may have lost anything, acknowledged or not."""
        try:
            self._distribution.reconcile()
            with self._database.write() as session:
                self._assignments.publish_again(session)
        except BaseException:
            self._reconnected.set()
            raise

    def tick(self) -> None:
        """Move rollouts on, and have what follows published."""
        if self._rollouts.tick():
            self.wake()

    def refresh(self) -> None:
        """Sign again what grows old, and what a crash left unsigned."""
        self._projects.settle()
        self._releases.sign_pending()
        self._signing.refresh()
        self._signer.follow_director()
        with self._database.write() as session:
            self._assignments.renew(session)
        self.wake()
