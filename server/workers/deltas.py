"""The worker that makes deltas, and has the assignments that waited for one sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from server.db.engine import Database
from server.services.releases.deltas import Deltas
from server.workers.supervisor import Worker

#: How often it is looked whether a delta is asked for: an assignment waits meanwhile.
_LOOK_SECONDS: Final = 0.5
_TIDY_SECONDS: Final = 3600.0


class DeltaWorker:
    """Makes one delta after the other."""

    def __init__(self, database: Database, deltas: Deltas, publish: Callable[[], None]) -> None:
        """Prepare the worker; nothing runs yet. `publish` has what changed signed and put on the broker."""
        self._database: Final = database
        self._deltas: Final = deltas
        self._publish: Final = publish
        self.worker: Final = Worker("deltas", self.step, _LOOK_SECONDS)
        self.tidier: Final = Worker("old deltas", deltas.tidy, _TIDY_SECONDS)

    def step(self) -> None:
        """Make what is asked for; who waited for it is told at once, with it or without."""
        while (pair := self._deltas.make_next()) is not None:
            with self._database.write() as session:
                self._deltas.release(session, pair)
            self._publish()
