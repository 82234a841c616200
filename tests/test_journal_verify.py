"""The chain: whatever is changed in a journal afterwards is found, and told by its first row."""

import hashlib
import shutil
import sqlite3
from contextlib import closing

import pytest
from helpers_daemon import make_message
from helpers_journal import change, seqs, until, write

from inspectord.chain import Head, chained
from inspectord.errors import JournalError
from inspectord.health import Health
from inspectord.journal import Journal
from inspectord.journal_file import INSERT
from inspectord.journal_retention import Retention
from inspectord.journal_verify import describe, verify
from inspectord.messages import Verdict, encode

COUNT = 2500  # more than two batches of verify


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    return path, write(path, COUNT)


@pytest.fixture
def path(written, tmp_path):
    """A copy to tamper with."""
    return shutil.copy(written[0], tmp_path / "journal.sqlite")


def test_an_untouched_journal_is_unbroken(written):
    path, head = written
    found = verify(path)
    assert (found.rows, found.head, found.gap_count) == (COUNT, head, 0)
    assert verify(path, head).head == head


def test_the_hash_is_what_the_documentation_says(written):
    """Written down again here, with nothing of ours: an auditor must be able to do the same."""
    with closing(sqlite3.connect(written[0])) as database:
        previous = hashlib.sha256(database.execute("SELECT beginning FROM journal").fetchone()[0].encode())
        for message, said in database.execute("SELECT message, hash FROM verdicts ORDER BY id LIMIT 20"):
            previous = hashlib.sha256(f"{previous.hexdigest()}\n{message}".encode())
            assert previous.hexdigest() == said


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE verdicts SET verdict = 'REJECT' WHERE id = 1234", "row 1234 .* its verdict is 'REJECT'"),
        ("UPDATE verdicts SET score = 0.1 WHERE id = 2500", "row 2500 .* its score is 0.1"),
        (
            "UPDATE verdicts SET message = replace(message, 'PASS', 'REJECT'), verdict = 'REJECT' "
            "WHERE id = 77",
            "row 77 .* not the one of its hash",
        ),
        ("UPDATE verdicts SET message = x'00' WHERE id = 3", "row 3 .* not the one of its hash"),
        ("DELETE FROM verdicts WHERE id = 1000", "row 1001 .* rows 1000 to 1000 before it are missing"),
        ("DELETE FROM verdicts WHERE id < 3", "row 3 .* rows 1 to 2 before it are missing"),
        ("UPDATE verdicts SET previous = hash WHERE id = 9", "row 9 .* does not follow"),
        ("UPDATE verdicts SET id = -5 WHERE id = 2500", "row -5 "),
        ("UPDATE journal SET beginning = replace(beginning, '2', '3')", "row 1 .* does not follow"),
        ("DELETE FROM journal", "its beginning was removed"),
        ("DROP TABLE verdicts", "can't read journal"),
        ("INSERT INTO forgotten VALUES ('2026-01-01', 'age', 'x', 9, 2500, 'h')", "removed by hand"),
    ],
)
def test_what_was_changed_is_told_by_its_first_row(path, statement, told):
    change(path, statement)
    with pytest.raises(JournalError, match=told):
        verify(path)


def test_two_rows_that_changed_places_are_found(path):
    change(
        path,
        "UPDATE verdicts SET id = 9999 WHERE id = 500",
        "UPDATE verdicts SET id = 500 WHERE id = 501",
        "UPDATE verdicts SET id = 501 WHERE id = 9999",
    )
    with pytest.raises(JournalError, match=r"row 500 .* does not follow"):
        verify(path)


def test_a_row_appended_without_the_head_is_found(path):
    forged = encode(make_message(COUNT + 1)).decode()
    row = chained(Head(COUNT, "0" * 64), [forged])[0]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(INSERT, row)
    with pytest.raises(JournalError, match=f"row {COUNT + 1} .* does not follow"):
        verify(path)


def test_rows_cut_off_at_the_end_are_shown_by_a_head_that_was_seen_outside(path, written):
    change(path, "DELETE FROM verdicts WHERE id > 2000")
    verify(path)  # the chain alone can't tell
    with pytest.raises(JournalError, match="row 2500 is gone: the rows end at 2000"):
        verify(path, written[1])


def test_a_journal_written_anew_is_shown_by_a_head_that_was_seen_outside(tmp_path, written):
    write(tmp_path / "journal.sqlite", COUNT)
    with pytest.raises(JournalError, match="row 2500 is another"):
        verify(tmp_path / "journal.sqlite", written[1])


def test_what_retention_forgot_is_no_damage(path, written):
    journal = Journal(path, 1, Health())
    until(lambda: seqs(path)[0] > 1)
    journal.put(make_message(COUNT + 1))
    journal.close()
    found = verify(path, written[1])
    assert found.forgotten == seqs(path)[0] - 1 == COUNT + 1 - found.rows
    assert found.gap_count == 0
    with pytest.raises(JournalError, match="forgotten by retention"):
        verify(path, Head(1, "0" * 64))
    change(path, f"DELETE FROM verdicts WHERE id = {found.forgotten + 1}")
    with pytest.raises(JournalError, match="before it are missing"):
        verify(path)


def test_rows_forgotten_during_the_walk_are_no_damage(path, monkeypatch):
    """Retention cuts after the first batch, below what was already seen and above."""
    from inspectord import journal_file, journal_verify

    taken = journal_verify._Walk.take
    file = journal_file.JournalFile(path, False)

    def cutting(self, row, anchor):
        taken(self, row, anchor)
        if row[0] == 1:
            file.forget(1, 600, "size")
        if row[0] == 1000:
            file.forget(601, 1700, "size")

    monkeypatch.setattr(journal_verify._Walk, "take", cutting)
    found = verify(path)
    file.close()
    assert (found.rows, found.forgotten, found.head.id) == (1800, 700, COUNT)


def test_verify_keeps_pace_with_a_journal_that_is_being_written(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", 100, Health())
    seen = []
    for seq in range(1, 3001):
        journal.put(make_message(seq))
        if seq % 500 == 0:
            seen.append(verify(journal.path, journal.head).rows)
    journal.close()
    assert verify(journal.path).rows == 3000
    assert seen == sorted(seen)


def test_verdicts_that_never_reached_the_journal_are_a_warning(tmp_path):
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, 100, Health())
    for seq in (1, 2, 5, 6, 6, 8):
        journal.put(make_message(seq))
        journal.put(make_message(seq, camera="cam2", boot_id="1" * 32, verdict=Verdict.REJECT))
    journal.close()
    found = verify(path)
    assert (found.superseded, found.gap_count) == (2, 4)
    said = "\n".join(describe(found, path))
    assert f"camera cam1, start {'0' * 32}: no row for seq 3 to 4" in said
    assert f"camera cam2, start {'1' * 32}: no row for seq 7" in said


def test_a_file_that_is_damaged_or_not_there_is_told_in_one_line(path, tmp_path):
    with pytest.raises(JournalError, match="there is no journal"):
        verify(tmp_path / "nothing.sqlite")
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xa5" * 50_000)
    with pytest.raises(JournalError):
        verify(path)


def test_age_forgets_only_what_is_older_and_not_for_a_day_after_the_clock_was_set(tmp_path):
    from inspectord.journal_file import JournalFile

    days = [f"2026-01-{day:02d}T00:00:00.000+00:00" for day in range(1, 11)]
    file = JournalFile(tmp_path / "journal.sqlite", False)
    file.append([encode(make_message(n, decided_at=day)).decode() for n, day in enumerate(days, 1)])
    clock = {"wall": 1_768_003_200.0, "steady": 100.0}  # 2026-01-10T00:00Z
    retention = Retention(1 << 30, 5.5, lambda: clock["wall"], lambda: clock["steady"])
    clock["wall"] += 86_400 * 365
    retention.tend(file)
    assert len(file.oldest(100)) == 9  # a year ahead at once: a clock that was set
    clock["wall"] -= 86_400 * 365
    clock["steady"] += 3600
    clock["wall"] += 3600
    retention.tend(file)
    assert len(file.oldest(100)) == 9  # and it is not believed any more
    clock["steady"] += 86_400
    clock["wall"] += 86_400
    retention.tend(file)
    assert file.oldest(100)[0] == (6, days[5])
    file.close()
    assert verify(tmp_path / "journal.sqlite").forgotten == 5


def test_a_row_dated_in_the_future_neither_stops_nor_speeds_forgetting(tmp_path):
    from inspectord.journal_file import JournalFile

    days = ["2036-01-01", "2026-01-01", "2036-01-01", "2026-01-09", "2026-01-10"]
    file = JournalFile(tmp_path / "journal.sqlite", False)
    texts = [f"{day}T00:00:00.000+00:00" for day in days]
    file.append([encode(make_message(n, decided_at=text)).decode() for n, text in enumerate(texts, 1)])
    Retention(1 << 30, 5.0, lambda: 1_768_003_200.0, lambda: 100.0).tend(file)
    assert file.oldest(1)[0][0] == 3
    file.close()


def test_the_quota_forgets_the_oldest_a_bounded_number_at_a_time(tmp_path):
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, 1, Health(), depth=100_000)
    for seq in range(1, 6001):
        journal.put(make_message(seq, part_id="x" * 80))
    journal.close(30)
    kept = seqs(path)
    assert kept[0] > 1000
    assert kept[-1] == 6000
    assert path.stat().st_size < 5 << 20
    assert verify(path).rows == len(kept)
