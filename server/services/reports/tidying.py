"""What the server forgets of what devices have told: the oldest of whoever has told the most."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, TypeAlias

from sqlalchemy import delete, func
from sqlmodel import col, select

from server.db.engine import Database
from server.db.offload_tables import OffloadRow
from server.db.tables import EventRow, Refusal, Report

LOG: Final = logging.getLogger("kedge.tidying")
_Told: TypeAlias = type[Report] | type[EventRow] | type[Refusal] | type[OffloadRow]
#: Rows that are kept of one device, the newest: hourly reports of two years, and so on.
KEPT: Final[Mapping[_Told, int]] = {Report: 20_000, EventRow: 5_000, Refusal: 1_000, OffloadRow: 5_000}


class Tidying:
    """Keeps each device's rows within bounds."""

    def __init__(self, database: Database, kept: Mapping[_Told, int] = KEPT) -> None:
        """Keep so many of each."""
        self._database: Final = database
        self._kept: Final = kept

    def tidy(self) -> int:
        """Delete what is too much; return how many rows that was."""
        gone = 0
        for table, kept in self._kept.items():
            gone += sum(self._cut(table, device, kept) for device in self._over(table, kept))
        if gone:
            LOG.info("forgot %d old rows of what devices have told", gone)
        return gone

    def _over(self, table: _Told, kept: int) -> list[str]:
        """Return the devices that have told more than is kept."""
        query = select(table.device_id).group_by(col(table.device_id)).having(func.count() > kept)
        with self._database.read() as session:
            return list(session.exec(query).all())

    def _cut(self, table: _Told, device: str, kept: int) -> int:
        """Delete what is older than the newest `kept` rows; of one moment, all or none."""
        newest = select(table.received_at).where(col(table.device_id) == device)
        with self._database.write() as session:
            oldest = session.exec(
                newest.order_by(col(table.received_at).desc()).offset(kept - 1).limit(1)
            ).first()
            if oldest is None:
                return 0
            old = delete(table).where(col(table.device_id) == device, col(table.received_at) < oldest)
            if table is OffloadRow:
                old = old.where(col(OffloadRow.finished_at).is_not(None))  # who waits is still worked for
            return int(session.connection().execute(old).rowcount)
