"""The journal: one row per verdict in SQLite, written behind the publisher by a thread of its own.

    verdicts(id, boot_id, camera, seq, decided_at, part_id, verdict, reason, score, score_limit, recipe_hash,
             message)

message is the published verdict as JSON. id grows with time. (boot_id, camera, seq) is unique; part_id is
indexed. Read it at any time, also while the daemon writes: `sqlite3 -readonly journal.sqlite`.
"""

from __future__ import annotations

import queue
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from inspectord.errors import StateError
from inspectord.health import Health, spawn
from inspectord.messages import VerdictMessage, encode

VERSION = 1
BATCH = 500
RETRY_S = 1.0
GATHER_S = 0.05  # a transaction a verdict would take the cores from inference and publishing
log = structlog.get_logger()

TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    id INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL, camera TEXT NOT NULL, seq INTEGER NOT NULL,
    decided_at TEXT NOT NULL, part_id TEXT NOT NULL,
    verdict TEXT NOT NULL, reason TEXT NOT NULL, score REAL, score_limit REAL NOT NULL,
    recipe_hash TEXT NOT NULL, message TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS verdict_key ON verdicts (boot_id, camera, seq);
CREATE INDEX IF NOT EXISTS verdict_part ON verdicts (part_id);
"""
INSERT = "INSERT OR IGNORE INTO verdicts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
FORGET = """
DELETE FROM verdicts WHERE id <=
    (SELECT MIN(id) + (MAX(id) - MIN(id)) / 20 FROM verdicts)
"""


class Journal:
    """Opened and proven writable at once; put() never waits."""

    def __init__(self, path: Path, quota_mb: int, health: Health, depth: int = 10_000) -> None:
        self.path = path
        self.dropped = 0
        self.failing: str | None = None
        self._quota_bytes = quota_mb << 20
        self._health = health
        self._queue: queue.Queue[VerdictMessage | None] = queue.Queue(depth)
        self._unchecked = 0
        self._database = _opened(path)
        self._thread = spawn("journal", self._run, health)

    @property
    def backlog(self) -> int:
        return self._queue.qsize()

    def put(self, message: VerdictMessage) -> None:
        """Enter a verdict; where the queue is full it is counted as dropped, and published all the same."""
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._drop(1, "the journal can't keep up")

    def close(self, timeout_s: float = 10.0) -> None:
        """Everything queued is written first."""
        try:
            self._queue.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        except queue.Full:
            pass
        if self._thread.is_alive():
            log.error("the journal did not finish", backlog=self.backlog)

    def _run(self) -> None:
        ended = False
        while not ended:
            self._health.beat("journal")
            batch, ended = self._next_batch()
            if batch:
                self._write(batch, ended)
        self._database.close()

    def _next_batch(self) -> tuple[list[VerdictMessage], bool]:
        batch: list[VerdictMessage] = []
        try:
            item = self._queue.get(timeout=0.5)
            if item is not None:
                time.sleep(GATHER_S)
            while item is not None:
                batch.append(item)
                if len(batch) == BATCH:
                    return batch, False
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _write(self, batch: Sequence[VerdictMessage], last: bool) -> None:
        """One transaction; on a full or failing disk one more try, then the batch is dropped and counted."""
        rows = [_row(message) for message in batch]
        for wait_s in (0.0 if last else RETRY_S, 0.0):
            try:
                with self._database:
                    self._database.executemany(INSERT, rows)
                self.failing = None
                self._keep_quota(len(rows))
                return
            except sqlite3.Error as error:
                self.failing = str(error)
                time.sleep(wait_s)
        self._drop(len(rows), f"can't write {self.path} ({self.failing}); free space on its disk")

    def _keep_quota(self, written: int) -> None:
        self._unchecked += written
        if self._unchecked < 1000:
            return
        self._unchecked = forgotten = 0
        removed = 1
        while removed and self._used_bytes() > self._quota_bytes:
            with self._database:
                removed = self._database.execute(FORGET).rowcount
            forgotten += removed
        if forgotten:
            log.info("journal at its quota, oldest verdicts forgotten", rows=forgotten)

    def _used_bytes(self) -> int:
        pages, free, size = (
            int(self._database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _drop(self, count: int, reason: str) -> None:
        if self.dropped % 1000 == 0 or count > 1:
            log.error("verdicts not journaled", count=count, dropped=self.dropped + count, reason=reason)
        self.dropped += count


def read_range(path: Path, boot_id: str, camera: str, first: int, last: int, most: int) -> list[str]:
    """Journaled messages (JSON) with first <= seq <= last in order, at most `most`; read-only."""
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=0.5)
    try:
        rows = database.execute(
            "SELECT message FROM verdicts WHERE boot_id = ? AND camera = ? AND seq BETWEEN ? AND ? "
            "ORDER BY seq LIMIT ?",
            (boot_id, camera, first, last, most),
        )
        return [row[0] for row in rows]
    finally:
        database.close()


def _row(message: VerdictMessage) -> tuple[str | int | float | None, ...]:
    return (
        message.boot_id,
        message.camera,
        message.seq,
        message.decided_at,
        message.part_id,
        message.verdict,
        message.reason,
        message.score,
        message.limit,
        message.recipe_hash,
        encode(message).decode(),
    )


def _opened(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, check_same_thread=False, timeout=2)
        found = int(database.execute("PRAGMA user_version").fetchone()[0])
        if found > VERSION:
            raise StateError(
                f"journal {path} is of a newer inspectord (version {found}); update this one, or move it away"
            )
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last rows, never the file
        database.execute("PRAGMA journal_size_limit=16777216")
        database.executescript(TABLES)
        database.execute(f"PRAGMA user_version={VERSION}")
        return database
    except (sqlite3.Error, OSError) as error:
        raise StateError(
            f"can't write journal {path} ({error}); check the folder's owner and free space, "
            "or move a damaged journal away: a new one is begun"
        ) from error
