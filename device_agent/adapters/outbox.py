"""The outbox: what waits to be sent, in a SQLite file that cannot grow past its cap.

A record stays until the server has acknowledged it. When the file is full the least valuable record goes:
hard requests first (the least worth of them), then the oldest reports; events only when nothing else is left.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from device_agent.errors import StorageError

#: A record's kind is the last level of its topic. The first is sent first and dropped last.
KINDS: Final = ("event", "report", "request")
_PAGE: Final = 4096
#: With less left, it is the disk that is full and not the outbox.
_DISK_RESERVE: Final = 256 * 1024
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind INTEGER NOT NULL, rank REAL NOT NULL,
  expires REAL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_worth ON records (kind, rank DESC, number);
CREATE TABLE IF NOT EXISTS questions (
  id TEXT PRIMARY KEY, model TEXT NOT NULL, provisional INTEGER NOT NULL, asked REAL NOT NULL,
  answered REAL, answer BLOB);
CREATE TABLE IF NOT EXISTS spent (
  day INTEGER NOT NULL, model TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (day, model));
"""


_FORGET_ANSWERS: Final = """
DELETE FROM questions WHERE id IN
  (SELECT id FROM questions WHERE answered IS NOT NULL ORDER BY answered LIMIT 8)
"""


class Record(NamedTuple):
    """One record that waits to be sent.

    Attributes:
        rank: within its kind, the highest is sent first and the lowest dropped first.
        expires: seconds since the Unix epoch after which nobody wants it, None for never.
    """

    id: str
    kind: str
    payload: bytes
    rank: float = 0.0
    expires: float | None = None


class Question(NamedTuple):
    """A hard request that the device has asked, and its answer's bytes once it is there."""

    id: str
    model: str
    provisional: int
    asked: float
    answered: float | None
    answer: bytes | None


class Outbox:
    """Records that wait, questions that were asked, and what was spent on them. Safe across threads."""

    def __init__(self, path: Path, max_bytes: int, *, keep_questions: int = 2000) -> None:
        """Open or make the file, or keep everything in memory (`:memory:`); it never grows past `max_bytes`.

        Raises:
            StorageError: it is no outbox, or damaged.
        """
        self._lock: Final = threading.Lock()
        self._keep_questions: Final = keep_questions
        self._folder: Final = path.parent
        self.dropped = 0
        try:
            self._db: Final = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.executescript(f"PRAGMA page_size={_PAGE}; PRAGMA journal_mode=WAL;")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA max_page_count={max(max_bytes // _PAGE, 32)}")
            # The write-ahead log stands beside the file: kept short, so that the cap is one of the disk too.
            self._db.execute("PRAGMA wal_autocheckpoint=64")
            self._db.execute(f"PRAGMA journal_size_limit={1024 * 1024}")
        except sqlite3.Error as error:
            raise StorageError(f"outbox {path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def put(self, record: Record) -> bool:
        """Keep a record until it is acknowledged; a record whose id is known changes nothing.

        Returns:
            Whether it was kept: not when the outbox is full of what is worth more.

        Raises:
            StorageError: the disk does not take it.
        """
        kind = KINDS.index(record.kind)
        row = (record.id, kind, record.rank, record.expires, record.payload)
        sql = "INSERT OR IGNORE INTO records (id, kind, rank, expires, payload) VALUES (?, ?, ?, ?, ?)"
        return self._kept(lambda db: db.execute(sql, row), kind, record.rank)

    def batch(self, now: float, limit: int, skip: Iterable[str] = ()) -> list[Record]:
        """Return what to send next: events, then reports, then requests by worth; none that has expired."""
        skipped = set(skip)
        rows = self._rows(
            "SELECT id, kind, payload, rank, expires FROM records "
            "WHERE expires IS NULL OR expires > ? ORDER BY kind, rank DESC, number LIMIT ?",
            now,
            limit + len(skipped),
        )
        records = [Record(row[0], KINDS[row[1]], row[2], row[3], row[4]) for row in rows]
        return [record for record in records if record.id not in skipped][:limit]

    def forget(self, ids: Iterable[str]) -> int:
        """Delete what the server has stored; return how many records that was."""
        with self._transaction() as db:
            return sum(db.execute("DELETE FROM records WHERE id = ?", (x,)).rowcount for x in ids)

    def expire(self, now: float) -> int:
        """Delete what nobody wants any more; return how many records that was."""
        with self._transaction() as db:
            return db.execute("DELETE FROM records WHERE expires <= ?", (now,)).rowcount

    def counts(self) -> dict[str, int]:
        """Return how many records of each kind wait."""
        found = dict(self._rows("SELECT kind, COUNT(*) FROM records GROUP BY kind"))
        return {kind: found.get(i, 0) for i, kind in enumerate(KINDS)}

    def waiting_bytes(self) -> int:
        """Return the bytes of all that waits."""
        return int(self._rows("SELECT COALESCE(SUM(LENGTH(payload)), 0) FROM records")[0][0])

    # --- hard requests ------------------------------------------------------------------------------

    def ask(self, record: Record, question: Question, budget: int) -> bool:
        """Queue a hard request, unless the model has spent its bytes of the day.

        Returns:
            Whether it was queued.
        """
        day = int(question.asked // 86400)
        spent = self._rows("SELECT bytes FROM spent WHERE day = ? AND model = ?", day, question.model)
        if (spent[0][0] if spent else 0) + len(record.payload) > budget or not self.put(record):
            return False

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM spent WHERE day < ?", (day,))
            db.execute(
                "INSERT INTO spent VALUES (?, ?, ?) "
                "ON CONFLICT (day, model) DO UPDATE SET bytes = bytes + excluded.bytes",
                (day, question.model, len(record.payload)),
            )
            db.execute("INSERT OR REPLACE INTO questions VALUES (?, ?, ?, ?, ?, ?)", question)
            db.execute(
                "DELETE FROM questions WHERE id IN "
                "(SELECT id FROM questions ORDER BY asked DESC LIMIT -1 OFFSET ?)",
                (self._keep_questions,),
            )

        return self._kept(write, KINDS.index(record.kind), record.rank)

    def answer(self, request_id: str, answer: bytes, now: float) -> Question | None:
        """Keep an answer, and forget the request.

        Returns:
            The question as it was, or None when it is not known or was answered before.
        """
        found: list[Question] = []

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM records WHERE id = ?", (request_id,))
            row = db.execute(
                "SELECT * FROM questions WHERE id = ? AND answered IS NULL", (request_id,)
            ).fetchone()
            found[:] = [Question(*row)] if row else []
            db.execute(
                "UPDATE questions SET answered = ?, answer = ? WHERE id = ? AND answered IS NULL",
                (now, answer, request_id),
            )

        self._kept(write, 0, 0.0)
        return found[0] if found else None

    def question(self, request_id: str) -> Question | None:
        """Return a question, None when it is not known."""
        rows = self._rows("SELECT * FROM questions WHERE id = ?", request_id)
        return Question(*rows[0]) if rows else None

    def answers_since(self, time: float, limit: int = 500) -> list[Question]:
        """Return the questions that were answered after a time, oldest answer first."""
        sql = "SELECT * FROM questions WHERE answered > ? ORDER BY answered LIMIT ?"
        return [Question(*row) for row in self._rows(sql, time, limit)]

    # ------------------------------------------------------------------------------------------------

    def _kept(self, write: Callable[[sqlite3.Connection], object], kind: int, rank: float) -> bool:
        """Write, making room as long as there is something worth less; return whether it was written."""
        while True:
            try:
                with self._transaction(durable=kind == 0) as db:
                    write(db)
            except StorageError as error:  # noqa: PERF203 - a second round is rare
                if "full" not in str(error) or self._disk_is_full():
                    raise  # to drop records would make room for others only
                if not self._evict(kind, rank):
                    self.dropped += 1
                    return False
            else:
                return True

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Run a transaction; a durable one is on the disk when it ends, others when the system likes.

        Raises:
            StorageError: the disk does not take it; nothing has changed.
        """
        with self._lock, _storage_errors():
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite has rolled back already when the disk is full
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, *values: object) -> list[Any]:
        """Return what a query finds.

        Raises:
            StorageError: the file is damaged, or the disk does not give it.
        """
        with self._lock, _storage_errors():
            return self._db.execute(sql, values).fetchall()

    def _disk_is_full(self) -> bool:
        return shutil.disk_usage(self._folder).free < _DISK_RESERVE

    def _evict(self, kind: int, rank: float) -> bool:
        """Drop the least valuable records that are worth less than a new one; return whether any was.

        Among reports and events the oldest go, so a newer one is always worth more.
        """
        worst = "SELECT number, kind, rank FROM records ORDER BY kind DESC, rank ASC, number ASC LIMIT 8"
        with self._transaction() as db:
            rows = db.execute(worst).fetchall()
            losers = [
                (n,) for n, k, r in rows if k > kind or (k == kind and (r < rank or k < len(KINDS) - 1))
            ]
            db.executemany("DELETE FROM records WHERE number = ?", losers)
            # An answer was there to be read: what still waits is worth more.
            answers = 0 if losers else db.execute(_FORGET_ANSWERS).rowcount
        self.dropped += len(losers)
        return bool(losers or answers)


def waiting(path: Path, now: float) -> list[Record]:
    """Return all that waits in an outbox's file, which an agent may be using.

    Raises:
        StorageError: it is no outbox, or damaged.
    """
    sql = "SELECT id, kind, payload, rank, expires FROM records WHERE expires IS NULL OR expires > ? "
    with _storage_errors(), closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
        rows = db.execute(f"{sql} ORDER BY kind, rank DESC, number", (now,)).fetchall()
    return [Record(row[0], KINDS[row[1]], row[2], row[3], row[4]) for row in rows]


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"outbox: {error}") from error
