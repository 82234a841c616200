"""The journal's SQLite file (version 2), owned by one thread: append to the chain, forget its oldest rows.

    verdicts(id, boot_id, camera, seq, decided_at, part_id, verdict, reason, score, score_limit, recipe_hash,
             message, previous, hash)   see chain.py; (boot_id, camera, seq) and part_id are indexed
    forgotten(day, why, at, rows, last_id, last_hash)   where retention cut: the row with the highest last_id
             is the anchor from which the rest of the chain goes on
    journal(beginning)   one row, see chain.py

A (boot_id, camera, seq) with several rows was decided more than once: the last row is what was published.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from inspectord.chain import COLUMNS, Head, chained, new_beginning, now_text, start_of
from inspectord.errors import StateError

VERSION = 2
BUSY_S = 1.0  # for somebody else's lock; the queue keeps what comes meanwhile
# Statements and values here are fixed: that one of them is wrong (ERROR, CONSTRAINT) means foreign tables.
DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)
MAGIC = b"SQLite format 3\0"

TABLES = """
CREATE TABLE journal (id INTEGER PRIMARY KEY CHECK (id = 1), beginning TEXT NOT NULL);
CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL, camera TEXT NOT NULL, seq INTEGER NOT NULL,
    decided_at TEXT NOT NULL, part_id TEXT NOT NULL,
    verdict TEXT NOT NULL, reason TEXT NOT NULL, score REAL, score_limit REAL NOT NULL,
    recipe_hash TEXT NOT NULL, message TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE INDEX verdict_key ON verdicts (boot_id, camera, seq);
CREATE INDEX verdict_part ON verdicts (part_id);
CREATE TABLE forgotten (
    day TEXT NOT NULL, why TEXT NOT NULL, at TEXT NOT NULL,
    rows INTEGER NOT NULL, last_id INTEGER NOT NULL, last_hash TEXT NOT NULL,
    PRIMARY KEY (day, why)
);
"""
INSERT = f"INSERT INTO verdicts VALUES ({', '.join('?' * (len(COLUMNS) + 4))})"
HEAD = "SELECT id, hash FROM verdicts ORDER BY id DESC LIMIT 1"
ANCHOR = "SELECT last_id, last_hash FROM forgotten ORDER BY last_id DESC LIMIT 1"
# One row a day: a journal at its quota forgets every minute, for years.
FORGOTTEN = """
INSERT INTO forgotten VALUES (substr(:at, 1, 10), :why, :at, :rows, :last_id, :last_hash)
ON CONFLICT (day, why) DO UPDATE SET
    at = :at, rows = rows + :rows, last_id = :last_id, last_hash = :last_hash
"""


class DamagedError(Exception):
    """The file can't be trusted or gone on with; kind becomes a part of its new name.

    still_open must be closed only after the file is renamed: before, that could change or delete the WAL.
    """

    def __init__(self, what: str, kind: str = "damaged") -> None:
        super().__init__(what)
        self.kind = kind
        self.still_open: sqlite3.Connection | None = None


class JournalFile:
    """An open journal.

    Raises DamagedError where the file can't be gone on with, StateError where it is of a newer version, and
    sqlite3.Error or OSError where the disk does not answer as it should, which may pass.
    """

    def __init__(self, path: Path, every_commit_on_disk: bool, note: str = "") -> None:
        self.path = path
        _check_header(path)
        self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            with _damage_told():
                self._set_up(every_commit_on_disk, note)
            self.head = self._read_head()
            self._inode = _inode(path)
            _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)  # the names of new files
        except DamagedError as damage:
            damage.still_open = self._database
            raise
        except BaseException:
            self._database.close()
            raise

    @property
    def in_place(self) -> bool:
        """False where the file was removed or another one is there: what is written would be lost."""
        return _inode(self.path) == self._inode

    def append(self, messages: Sequence[str]) -> None:
        """One transaction; each message is JSON of a verdict."""
        rows = chained(self.head, messages)
        with self._transaction():
            if self._read_head() != self.head:
                raise DamagedError("another program added or removed rows")
            self._database.executemany(INSERT, rows)
        self.head = Head(self.head.id + len(rows), str(rows[-1][-1]))

    def sync(self) -> None:
        """Every row so far is on the disk when this returns, whatever happens to the power."""
        _sync(self.path.with_name(self.path.name + "-wal"), os.O_RDONLY)

    def used_bytes(self) -> int:
        pages, free, size = (
            int(self._database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def oldest(self, most: int) -> list[tuple[int, str]]:
        """id and decided_at of the oldest rows, in their order; never the newest row of all."""
        with _damage_told():
            return self._database.execute(
                "SELECT id, decided_at FROM verdicts WHERE id < ? ORDER BY id LIMIT ?", (self.head.id, most)
            ).fetchall()

    def forget(self, first_id: int, last_id: int, why: str) -> None:
        """Remove the oldest rows and keep the anchor that proves where they ended; one transaction."""
        count = last_id - first_id + 1
        with self._transaction():
            row = self._database.execute("SELECT hash FROM verdicts WHERE id = ?", (last_id,)).fetchone()
            removed = self._database.execute("DELETE FROM verdicts WHERE id <= ?", (last_id,)).rowcount
            if row is None or removed != count:
                raise DamagedError("another program removed rows")
            values = {"at": now_text(), "why": why, "rows": count, "last_id": last_id, "last_hash": row[0]}
            self._database.execute(FORGOTTEN, values)

    def close(self) -> None:
        self._database.close()

    def _set_up(self, every_commit_on_disk: bool, note: str) -> None:
        version = int(self._database.execute("PRAGMA user_version").fetchone()[0])
        tables = self._database.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]
        _check_version(self.path, version, tables)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA journal_size_limit=16777216")
        self._database.execute("PRAGMA synchronous=FULL")
        if tables == 0:
            self._create(note)
        if not every_commit_on_disk:
            self._database.execute("PRAGMA synchronous=NORMAL")

    def _create(self, note: str) -> None:
        with self._transaction():
            for statement in filter(str.strip, TABLES.split(";")):
                self._database.execute(statement)
            self._database.execute("INSERT INTO journal VALUES (1, ?)", (new_beginning(note),))
            self._database.execute(f"PRAGMA user_version={VERSION}")

    def _read_head(self) -> Head:
        with _damage_told():
            return read_head(self._database)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _damage_told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite itself rolls back after some errors
                    with suppress(sqlite3.Error):
                        self._database.execute("ROLLBACK")
                raise


def read_head(database: sqlite3.Connection) -> Head:
    """The newest row, or where retention cut, or where the file was begun. DamagedError without any."""
    row = database.execute(HEAD).fetchone() or database.execute(ANCHOR).fetchone()
    return Head(*row) if row is not None else read_start(database)


def read_start(database: sqlite3.Connection) -> Head:
    row = database.execute("SELECT beginning FROM journal").fetchone()
    if row is None or not isinstance(row[0], str):
        raise DamagedError("its beginning was removed")
    return start_of(row[0])


def is_damage(error: sqlite3.Error) -> bool:
    """True where waiting does not help: malformed, no database at all, or not the journal's tables."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte: extended codes say more above
    return code in DAMAGE


def _check_header(path: Path) -> None:
    """Before SQLite sees it, which deletes the WAL of a database that is empty or none."""
    wal = path.with_name(path.name + "-wal")
    start = b""
    if path.exists():
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    if start and start != MAGIC:
        raise DamagedError("it is not a database")
    if not start and wal.exists() and wal.stat().st_size:
        raise DamagedError("it is gone or empty, and its WAL is not")


def _check_version(path: Path, version: int, tables: int) -> None:
    if version > VERSION:
        raise StateError(
            f"journal {path} is of a newer inspectord (version {version}); update this one, or move it away"
        )
    if version == 1:
        raise DamagedError("it is of version 1, without a chain", "version1")
    if version != VERSION and tables:
        raise DamagedError("it is no journal of inspectord")
    if version == VERSION and not tables:
        raise DamagedError("its tables were removed")


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise DamagedError(str(error)) from error
        raise


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
