"""The journal: a hash-chained row per verdict in SQLite, written by a thread of its own.

Read it at any time, also while the daemon writes: `inspectord journal`, or `sqlite3 -readonly`. The tables
are described in journal_file.py, the chain in chain.py.

What can be lost:
    after_publish   kill -9: what was published in the last GATHER_S and during the write under way;
                    power cut: SYNC_S more of it.
    before_publish  nothing that was published: a PASS or REJECT goes out only once its row is synced to the
                    disk. Where that takes longer than its deadline it goes out as NOT_INSPECTED/not_journaled
                    and a second row says so (a kill -9 between the two rows leaves the first). NOT_INSPECTED
                    waits for its row as well, but goes out at its deadline in any case.
    both            the newest verdicts, counted in `dropped`, when the disk fails for longer than the queue
                    lasts.

A disk that is full, read-only or locked costs nothing for that long: the batch is tried again. A damaged
file is renamed, never deleted, and a new one begun: a line must not stop for damaged evidence.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from inspectord.chain import Head
from inspectord.health import Health, spawn
from inspectord.journal_read import read_range as read_range
from inspectord.journal_retention import Retention
from inspectord.journal_writer import Writer
from inspectord.messages import VerdictMessage, encode

BATCH = 500
GATHER_S = 0.05  # a transaction a verdict would take the cores from inference and publishing
IDLE_S = 0.5
RETRY_S, LONGEST_RETRY_S = 0.02, 1.0
STALLED_S = 3.0  # more than SQLite's wait for somebody else's lock
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Entry:
    """A verdict on its way; on_disk is set once its row is committed, and in before_publish synced."""

    message: VerdictMessage
    on_disk: threading.Event | None


class Journal:
    """Opened and proven writable at once; put() and begin() never wait.

    Raises StateError where no journal can be written. failing, set_aside, dropped, backlog and head are for
    heartbeats.
    """

    def __init__(
        self,
        path: Path,
        quota_mb: int,
        health: Health,
        depth: int = 10_000,
        *,
        keep_days: float | None = None,
        before_publish: bool = False,
    ) -> None:
        self.path = path
        self.before_publish = before_publish
        self.dropped = 0
        self._depth, self._health = depth, health
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._texts: list[str] = []  # the batch that is being written, and its events
        self._waiting: list[threading.Event] = []
        self._failing: str | None = None
        self._calling_since_s: float | None = None
        self._retry_s = RETRY_S
        self._close_by_s: float | None = None
        self._writer = Writer(path, before_publish, Retention(quota_mb << 20, keep_days))
        self._thread = spawn("journal", self._run, health)

    @property
    def head(self) -> Head:
        """The newest row that a power cut can't take any more; at most SYNC_S behind."""
        return self._writer.head

    @property
    def set_aside(self) -> str | None:
        """The last file that was found damaged since this start, and why."""
        return self._writer.set_aside

    @property
    def backlog(self) -> int:
        return self._queue.qsize() + len(self._texts)

    @property
    def failing(self) -> str | None:
        """Why rows are not getting to the disk at present."""
        since_s = self._calling_since_s
        stalled_s = time.monotonic() - since_s if since_s is not None else 0.0
        if stalled_s > STALLED_S:
            return f"the disk has not answered for {stalled_s:.0f} s"
        return self._failing

    def put(self, message: VerdictMessage) -> None:
        """Enter a verdict; where the queue is full it is counted as dropped, and published all the same."""
        if self._queue.qsize() < self._depth:
            self._queue.put(Entry(message, None))
        else:
            self._drop(1, f"the journal can't keep up; free space on the disk of {self.path}")

    def begin(self, message: VerdictMessage) -> threading.Event | None:
        """Enter a verdict; the event is set once its row is on the disk. None where the queue is full."""
        if self._queue.qsize() >= self._depth:
            return None
        entry = Entry(message, threading.Event())
        self._queue.put(entry)
        return entry.on_disk

    def correct(self, message: VerdictMessage) -> None:
        """The last word on a seq that begin() took: never dropped, or the journal would say the other."""
        self._queue.put(Entry(message, None))

    def close(self, timeout_s: float = 10.0) -> None:
        """Everything queued is written first, if the disk lets that happen in time."""
        self._close_by_s = time.monotonic() + timeout_s
        self._queue.put(None)  # wakes the thread
        self._thread.join(timeout_s + LONGEST_RETRY_S)
        if self._thread.is_alive():
            log.error("the journal did not finish", backlog=self.backlog, reason=self.failing)

    def _run(self) -> None:
        while not self._finished():
            self._health.beat("journal")
            self._gather()
            with self._disk_call():
                fault = self._write() or self._writer.tidy(sync_now=self._close_by_s is not None)
            if fault is not None:
                self._failed(fault)
            else:
                self._succeeded()
        with self._disk_call():
            self._writer.close()

    def _finished(self) -> bool:
        if self._close_by_s is None:
            return False
        over = time.monotonic() > self._close_by_s
        if over:
            while not self._queue.empty():
                self._add(self._queue.get())
            if self._texts:
                self._drop(len(self._texts), f"the journal could not be written at the end ({self._failing})")
        return over or (not self.backlog and self._writer.done)

    def _gather(self) -> None:
        """Up to BATCH verdicts in their order; waits IDLE_S at most for the first."""
        try:
            if not self._texts:
                self._add(self._queue.get(timeout=IDLE_S if self._close_by_s is None else 0.0))
                if self._texts and not self.before_publish and self._queue.qsize() < BATCH:
                    time.sleep(GATHER_S)
            while len(self._texts) < BATCH:
                self._add(self._queue.get_nowait())
        except queue.Empty:
            pass

    def _add(self, entry: Entry | None) -> None:
        if entry is None:
            return
        try:
            self._texts.append(encode(entry.message).decode())
        except (ValueError, TypeError) as error:  # published in msgpack, which can say more than JSON
            self._drop(1, f"seq {entry.message.seq} of {entry.message.camera} can't be written: {error}")
            return
        if entry.on_disk is not None:
            self._waiting.append(entry.on_disk)

    def _write(self) -> Exception | None:
        """The batch, in one transaction; it is kept until that succeeds."""
        fault = self._writer.append(self._texts) if self._texts else None
        if fault is None:
            for event in self._waiting:
                event.set()
            self._texts, self._waiting = [], []
        return fault

    def _failed(self, error: Exception) -> None:
        if self._failing is None:
            log.error("the journal can't be written, trying again", path=str(self.path), error=str(error))
        self._failing = str(error)
        time.sleep(self._retry_s)
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)

    def _succeeded(self) -> None:
        if self._failing is not None:
            log.warning("the journal is written again", backlog=self.backlog, dropped=self.dropped)
        self._failing, self._retry_s = None, RETRY_S

    def _drop(self, count: int, reason: str) -> None:
        if self.dropped % 1000 == 0 or count > 1:
            log.error("verdicts not journaled", count=count, dropped=self.dropped + count, reason=reason)
        self.dropped += count

    @contextmanager
    def _disk_call(self) -> Iterator[None]:
        """A disk that stalls is told by `failing`: a watchdog's restart would stop the line, not mend it."""
        self._calling_since_s = time.monotonic()
        self._health.excuse("journal")
        try:
            yield
        finally:
            self._calling_since_s = None
            self._health.beat("journal")
