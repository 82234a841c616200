"""The journal's thread's hands: batches to the disk, what fails again, what is damaged out of the way."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from inspectord.chain import Head
from inspectord.errors import StateError
from inspectord.journal_file import DamagedError, JournalFile
from inspectord.journal_retention import Retention

SYNC_S = 1.0
ASIDE_EVERY_S = 60.0  # a disk that damages every file must not be filled with them
SIDES = ("-wal", "-shm", "")  # the WAL first: SQLite deletes one that has no database any more
log = structlog.get_logger()


class Writer:
    """Owned by one thread. head is the newest row that a power cut can't take any more.

    Raises StateError where no journal can be written at the start.
    """

    def __init__(self, path: Path, every_commit_on_disk: bool, retention: Retention) -> None:
        self.head = Head(0, "")
        self.set_aside: str | None = None
        self._path, self._every_commit_on_disk, self._retention = path, every_commit_on_disk, retention
        self._file: JournalFile | None = None
        self._written: Head | None = None  # None: the next file is a new one
        self._damage: DamagedError | None = None  # of the file that is still in its place
        self._note = ""
        self._device = -1  # of the folder, when a file was last opened there
        self._sync_due_s = 0.0
        self._aside_s = -math.inf
        try:
            try:
                self._opened()
            except DamagedError as damage:
                self._begin_anew(damage)
                self._opened()
        except (DamagedError, sqlite3.Error, OSError) as error:
            raise StateError(
                f"can't write journal {path} ({error}); check the folder's owner and free space"
            ) from error

    @property
    def done(self) -> bool:
        """True where everything written is on the disk."""
        return self._file is not None and self.head == self._written

    def append(self, messages: Sequence[str]) -> Exception | None:
        """One transaction; what went wrong, to be tried again, or None once the rows are committed."""
        return self._attempt(lambda file: self._append(file, messages))

    def tidy(self, sync_now: bool) -> Exception | None:
        """Sync to the disk where that is due, and forget what may be forgotten; what went wrong, or None."""
        return self._attempt(lambda file: self._tidy(file, sync_now))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _attempt(self, work: Callable[[JournalFile], None]) -> Exception | None:
        if self._damage is not None:
            return self._replaced(self._damage)
        try:
            work(self._opened())
        except DamagedError as damage:
            return self._replaced(damage)
        except (StateError, sqlite3.Error, OSError) as error:
            self._let_go(error)
            return error
        return None

    def _append(self, file: JournalFile, messages: Sequence[str]) -> None:
        file.append(messages)
        self._written = file.head
        if self._every_commit_on_disk:
            self.head = file.head

    def _tidy(self, file: JournalFile, sync_now: bool) -> None:
        if self.head != file.head and (sync_now or time.monotonic() >= self._sync_due_s):
            self._sync(file)
        self._retention.tend(file)

    def _sync(self, file: JournalFile) -> None:
        file.sync()
        self.head, self._sync_due_s = file.head, time.monotonic() + SYNC_S

    def _opened(self) -> JournalFile:
        """The file as it was left, or a new one. Raises what JournalFile raises."""
        if self._file is not None and self._file.in_place:
            return self._file
        self.close()
        self._check_place()
        file = JournalFile(self._path, self._every_commit_on_disk, self._note)
        if self._written not in (None, file.head):
            self._file = file  # closed once it is renamed
            raise DamagedError("rows that were written are no longer there, or others are")
        self._file, self._written, self._device = file, file.head, self._path.parent.stat().st_dev
        self._sync(file)
        return file

    def _check_place(self) -> None:
        """A file that is gone is begun anew, but not on the disk below its own disk's mount point."""
        if self._written is None or self._path.exists():
            return
        if self._path.parent.stat().st_dev != self._device:
            raise OSError(f"the disk of {self._path.parent} is no longer mounted")
        raise DamagedError("it was removed")

    def _replaced(self, damage: DamagedError) -> Exception:
        """The damaged file is out of the way, or the reason why it is not; the batch is tried again."""
        self._damage = damage  # until then nothing touches the file, not even to close it
        try:
            if time.monotonic() - self._aside_s >= ASIDE_EVERY_S:
                self._begin_anew(damage)
        except OSError as error:
            return error
        return damage

    def _begin_anew(self, damage: DamagedError) -> None:
        """Rename the file; the next one says why it was begun. Raises OSError."""
        aside = set_aside(self._path, damage.kind)
        self._aside_s = time.monotonic()
        self._note = f"the journal before this one is {aside.name}: {damage}"
        self.set_aside = (
            f"set aside as {aside.name}: {damage}; keep that file, it is evidence"
            if aside.exists()
            else f"{damage}; what it held is gone from this box"
        )
        log.error("journal set aside, a new one is begun", aside=str(aside), reason=str(damage))
        if damage.still_open is not None:
            damage.still_open.close()
        self.close()
        self._written = self._damage = None

    def _let_go(self, error: Exception) -> None:
        """A file system that was mounted again needs the file opened again; others' locks and space don't."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):
            self.close()


def set_aside(path: Path, kind: str) -> Path:
    """Rename a journal and its WAL to PATH.KIND-TIME; the new path. Nothing is deleted.

    A connection that still has it open leaves the renamed files as they are when it is closed.
    """
    stamp = f"{path.name}.{kind}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 100))]
    target = next(path.with_name(name) for name in names if not _any_exists(path.with_name(name)))
    for side in SIDES:
        with suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(target.with_name(target.name + side))
    return target


def _any_exists(path: Path) -> bool:
    return any(path.with_name(path.name + side).exists() for side in SIDES)
