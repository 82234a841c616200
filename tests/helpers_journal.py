"""Journals to look into: real files, written by the real thread."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

from helpers_daemon import make_message

from inspectord.health import Health
from inspectord.journal import Journal


def write(path, count, first=1, **changes):
    """A journal with so many verdicts, closed again; its head."""
    journal = Journal(path, 100, Health())
    for seq in range(first, first + count):
        journal.put(make_message(seq, **changes))
    journal.close()
    return journal.head


def rows(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT seq, part_id, verdict, message FROM verdicts ORDER BY id").fetchall()


def seqs(path):
    return [row[0] for row in rows(path)]


def change(path, *statements):
    """What somebody with the sqlite3 shell could do."""
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def until(condition, timeout_s=8.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "not within the time"
        time.sleep(0.005)
