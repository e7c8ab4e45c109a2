"""Locks for what no row stands for yet: two transactions that would both find a name free."""

from __future__ import annotations

import enum

from sqlalchemy import func
from sqlmodel import Session, select


class Turn(enum.IntEnum):
    """What one transaction at a time does; the numbers are PostgreSQL's keys of advisory locks."""

    ENROLMENT = 0x6B656467


def take(session: Session, turn: Turn) -> None:
    """Wait for one's turn, and keep it until the transaction ends.

    On SQLite every writer is alone already. It is to be taken before any row is locked.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.exec(select(func.pg_advisory_xact_lock(int(turn))))
