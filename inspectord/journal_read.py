"""Reading a journal while the daemon writes it: read-only, in short transactions that hold up nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from inspectord.errors import JournalError
from inspectord.journal_file import VERSION

BATCH = 1000  # rows in a transaction; a long one would keep the writer from tidying up its WAL
RANGE = """
SELECT message FROM verdicts WHERE id IN (
    SELECT MAX(id) FROM verdicts WHERE boot_id = ? AND camera = ? AND seq BETWEEN ? AND ?
    GROUP BY seq ORDER BY seq LIMIT ?
) ORDER BY seq
"""
# A row with a later one for the same seq was decided, but is not what was published.
SUPERSEDED = """
EXISTS (SELECT 1 FROM verdicts AS later WHERE later.boot_id = verdicts.boot_id
        AND later.camera = verdicts.camera AND later.seq = verdicts.seq AND later.id > verdicts.id)
"""


def read_range(path: Path, boot_id: str, camera: str, first: int, last: int, most: int) -> list[str]:
    """Published messages (JSON) with first <= seq <= last in order, at most `most`, one a seq.

    Raises sqlite3.Error where the journal can't be read now.
    """
    with closing(_connected(path, "mode=ro")) as database:
        return [row[0] for row in database.execute(RANGE, (boot_id, camera, first, last, most))]


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal to look into. Raises JournalError, also for what is found damaged later on."""
    try:
        with closing(_readable(path)) as database:
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
            if version != VERSION:
                raise JournalError(
                    f"{path} is a journal of version {version}, this inspectord reads version {VERSION}; "
                    "use the inspectord that wrote it"
                )
            yield database
    except sqlite3.Error as error:
        raise JournalError(
            f"can't read journal {path} ({error}); if it is damaged, keep it, and look for a copy"
        ) from error


def batches(
    database: sqlite3.Connection, query: str, values: tuple[object, ...] = ()
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of `query` in batches; it takes (the id so far, *values), and its rows begin with their id."""
    last_id: object = 0
    while rows := database.execute(f"{query} LIMIT {BATCH}", (last_id, *values)).fetchall():
        yield rows
        last_id = rows[-1][0]


def _readable(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise JournalError(f"there is no journal {path}; give its path, or --config")
    database = _connected(path, "mode=ro")
    try:
        database.execute("PRAGMA user_version")
    except sqlite3.OperationalError:
        database.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        # A copy on a medium that can't be written: nobody else writes it either.
        database = _connected(path, "immutable=1")
    return database


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=0.5, isolation_level=None)
