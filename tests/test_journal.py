"""The journal: a real SQLite file that never holds up a verdict and never lies about what it lost."""

import os
import shutil
import sqlite3
import threading
import time

import pytest
from helpers_daemon import make_message

from inspectord.errors import StateError
from inspectord.health import Health
from inspectord.journal import Journal, read_range
from inspectord.messages import decode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def rows(path):
    with sqlite3.connect(path) as database:
        return database.execute("SELECT seq, part_id, verdict, message FROM verdicts ORDER BY id").fetchall()


def test_everything_queued_is_written_at_the_end(path):
    journal = Journal(path, 100, Health())
    for seq in range(1, 2001):
        journal.put(make_message(seq))
    journal.close()
    assert [row[0] for row in rows(path)] == list(range(1, 2001))
    assert decode(rows(path)[9][3].encode()) == make_message(10)


def test_a_second_start_continues_the_file(path):
    for boot in ("1", "2"):
        journal = Journal(path, 100, Health())
        journal.put(make_message(1, boot_id=boot * 32))
        journal.close()
    assert len(rows(path)) == 2


def test_a_range_is_read_in_order_and_bounded_while_the_daemon_writes(path):
    journal = Journal(path, 100, Health())
    for seq in range(1, 101):
        journal.put(make_message(seq))
    end_s = time.monotonic() + 5
    while len(read_range(path, "0" * 32, "cam1", 1, 100, 200)) < 100 and time.monotonic() < end_s:
        time.sleep(0.02)
    found = read_range(path, "0" * 32, "cam1", 40, 2**62, 20)
    assert [decode(line.encode()).seq for line in found] == list(range(40, 60))
    journal.close()


def test_a_full_queue_drops_and_counts_and_does_not_wait(path):
    journal = Journal(path, 100, Health(), depth=10)
    with sqlite3.connect(path) as blocker:
        blocker.execute("BEGIN EXCLUSIVE")
        began_s = time.monotonic()
        for seq in range(1, 5001):
            journal.put(make_message(seq))
        assert time.monotonic() - began_s < 1.0
        blocker.rollback()
    journal.close()
    assert journal.dropped > 0
    assert journal.dropped + len(rows(path)) == 5000


def test_a_journal_below_a_file_names_the_next_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="check the folder's owner"):
        Journal(tmp_path / "file" / "journal.sqlite", 100, Health())


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look", os.urandom(8192)])
def test_a_damaged_journal_refuses_to_start(path, content):
    path.write_bytes(content)
    with pytest.raises(StateError, match="move a damaged journal away"):
        Journal(path, 100, Health())


def test_a_journal_of_a_newer_version_refuses_to_start(path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(StateError, match="newer inspectord"):
        Journal(path, 100, Health())


def test_the_quota_forgets_the_oldest(path):
    journal = Journal(path, 1, Health(), depth=100_000)
    for seq in range(1, 6001):
        journal.put(make_message(seq, part_id="x" * 80))
    journal.close(30)
    kept = [row[0] for row in rows(path)]
    assert kept[0] > 1000
    assert kept[-1] == 6000
    assert path.stat().st_size < 4 << 20


def test_a_failing_disk_is_told_and_the_journal_goes_on(path, monkeypatch):
    monkeypatch.setattr("inspectord.journal.RETRY_S", 0.01)
    journal = Journal(path, 100, Health())
    with sqlite3.connect(path) as breaker:
        breaker.execute("ALTER TABLE verdicts RENAME TO elsewhere")
    journal.put(make_message(1))
    end_s = time.monotonic() + 5
    while journal.dropped == 0 and time.monotonic() < end_s:
        time.sleep(0.01)
    assert journal.failing is not None
    with sqlite3.connect(path) as mender:
        mender.execute("ALTER TABLE elsewhere RENAME TO verdicts")
    journal.put(make_message(2))
    journal.close()
    assert [row[0] for row in rows(path)] == [2]
    assert journal.failing is None


def test_no_thread_is_left_behind(path):
    before = threading.active_count()
    Journal(path, 100, Health()).close()
    assert threading.active_count() == before
    shutil.rmtree(path.parent)
