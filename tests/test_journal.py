"""The journal: a real SQLite file that never holds up a verdict and never lies about what it lost."""

import json
import shutil
import sqlite3
import threading
import time

import pytest
from helpers_daemon import make_message
from helpers_journal import change, rows, seqs, until

from inspectord.errors import StateError
from inspectord.health import Health
from inspectord.journal import Journal, read_range
from inspectord.journal_verify import verify
from inspectord.messages import Reason, Verdict, decode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


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


def test_a_journal_of_a_newer_version_refuses_to_start(path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(StateError, match="newer inspectord"):
        Journal(path, 100, Health())


def test_the_head_is_told_once_its_row_can_no_longer_be_lost(path):
    journal = Journal(path, 100, Health())
    assert journal.head.id == 0
    journal.put(make_message(1))
    journal.put(make_message(2))
    until(lambda: journal.head.id == 2)
    assert str(journal.head) == f"2:{verify(path).head.hash}"
    journal.close()
    again = Journal(path, 100, Health())
    assert again.head == journal.head
    again.close()


def test_begin_tells_when_the_row_is_on_the_disk(path):
    journal = Journal(path, 100, Health(), before_publish=True)
    for seq in range(1, 51):
        on_disk = journal.begin(make_message(seq))
        assert on_disk.wait(2.0)
        assert journal.head.id == seq
        assert seqs(path)[-1] == seq
    journal.close()


def test_the_last_row_of_a_seq_is_what_was_published(path):
    journal = Journal(path, 100, Health(), before_publish=True)
    withdrawn = {"verdict": Verdict.NOT_INSPECTED, "reason": Reason.NOT_JOURNALED, "score": None}
    for seq in (1, 2, 3):
        journal.begin(make_message(seq))
        if seq == 2:
            journal.correct(make_message(seq, **withdrawn))
    journal.close()
    found = [decode(line.encode()) for line in read_range(path, "0" * 32, "cam1", 1, 9, 10)]
    assert [(message.seq, str(message.verdict)) for message in found] == [
        (1, "PASS"),
        (2, "NOT_INSPECTED"),
        (3, "PASS"),
    ]
    assert seqs(path) == [1, 2, 2, 3]
    assert read_range(path, "0" * 32, "cam1", 1, 9, 2)[1:] == [rows(path)[2][3]]


def test_a_correction_is_never_dropped(path):
    journal = Journal(path, 100, Health(), depth=1, before_publish=True)
    with sqlite3.connect(path) as blocker:
        blocker.execute("BEGIN EXCLUSIVE")
        journal.begin(make_message(1))
        until(lambda: journal.failing)
        assert journal.begin(make_message(2)) is not None
        assert journal.begin(make_message(3)) is None  # full
        journal.correct(make_message(2, verdict=Verdict.NOT_INSPECTED))
        blocker.rollback()
    journal.close()
    assert [(row[0], row[2]) for row in rows(path)] == [(1, "PASS"), (2, "PASS"), (2, "NOT_INSPECTED")]


def test_a_part_id_of_any_characters_is_journaled(path):
    odd = ["\x00", "\ud800", "a'; DROP TABLE verdicts; --", "\n", "ä" * 10_000, ""]
    journal = Journal(path, 100, Health())
    for seq, part_id in enumerate(odd, 1):
        journal.put(make_message(seq, part_id=part_id))
    journal.close()
    assert [json.loads(row[3])["part_id"] for row in rows(path)] == odd
    assert verify(path).rows == len(odd)


def test_a_verdict_that_can_not_be_written_costs_itself_only(path):
    journal = Journal(path, 100, Health())
    journal.put(make_message(1, limit=float("inf")))
    journal.put(make_message(2))
    journal.close()
    assert seqs(path) == [2]
    assert journal.dropped == 1


def test_tables_that_are_not_the_journals_are_set_aside(path):
    change(path, "CREATE TABLE other (x)")
    journal = Journal(path, 100, Health())
    journal.put(make_message(1))
    journal.close()
    assert seqs(path) == [1]
    assert "no journal of inspectord" in journal.set_aside


def test_a_journal_of_version_1_is_set_aside_and_says_so(path):
    change(path, "CREATE TABLE verdicts (id INTEGER PRIMARY KEY)", "PRAGMA user_version=1")
    journal = Journal(path, 100, Health())
    journal.close()
    assert "version 1" in journal.set_aside
    (aside,) = path.parent.glob("journal.sqlite.version1-*Z")
    assert aside.name in verify(path).beginning["note"]


def test_no_thread_is_left_behind(path):
    before = threading.active_count()
    Journal(path, 100, Health()).close()
    assert threading.active_count() == before
    shutil.rmtree(path.parent)
