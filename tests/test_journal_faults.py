"""Storage that fails: full, read-only, stalled, locked, torn, garbled, gone. No evidence is thrown away."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers_daemon import make_message
from helpers_journal import change, seqs, until, write

from inspectord import journal_writer
from inspectord.chain import COLUMNS
from inspectord.errors import StateError
from inspectord.health import Health
from inspectord.journal import Journal, read_range
from inspectord.journal_verify import verify
from inspectord.messages import encode

WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from inspectord.health import Health
from inspectord.journal import Journal
from inspectord.messages import decode
path, before, first = Path(sys.argv[1]), sys.argv[2] == "before", decode(sys.argv[3].encode())
journal = Journal(path, 100, Health(), before_publish=before)
for seq in range(1, 100_000):
    message = replace(first, seq=seq)
    if before:
        assert journal.begin(message).wait(5)
    print(seq, time.monotonic(), flush=True)  # published
    if not before:
        journal.put(message)
        time.sleep(0.0005)
"""
mounting = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


def mounted(*command):
    done = run("mount", *map(str, command))
    if done.returncode:
        pytest.skip(f"can't mount here: {done.stderr.strip()}")


@pytest.fixture
def small(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
    yield folder
    run("umount", "--lazy", str(folder))


@pytest.fixture
def disk(tmp_path):
    """An ext4 file system in a file, which can be frozen and broken; (its image, where it is mounted)."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    if run("mkfs.ext4", "-q", str(image)).returncode:
        pytest.skip("no mkfs.ext4 here")
    mounted("-o", "loop", image, folder)
    yield image, folder
    run("fsfreeze", "--unfreeze", str(folder))
    while run("umount", "--lazy", str(folder)).returncode == 0:
        pass


@pytest.mark.parametrize("mode", ["after", "before"])
def test_a_kill_costs_no_more_than_promised(tmp_path, mode):
    """Killed 6 times at random moments; the same file goes on each time."""
    path, moments, lost = tmp_path / "journal.sqlite", random.Random(1), []
    for boot in range(6):
        boot_id = f"{boot:032x}"
        message = encode(make_message(1, boot_id=boot_id)).decode()
        command = [sys.executable, "-c", WRITER, str(path), mode, message]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline()
        time.sleep(moments.uniform(0.1, 0.4))
        process.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        lines = [line.split() for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n"]
        process.wait()
        published = {int(seq): float(at_s) for seq, at_s in lines}
        Journal(path, 100, Health()).close()
        found = len(read_range(path, boot_id, "cam1", 1, 100_000, 100_000))
        lost.append(max([0.0, *(killed_s - at_s for seq, at_s in published.items() if seq > found)]))
        assert verify(path).gap_count == 0
    assert max(lost) == 0 if mode == "before" else max(lost) < 0.35  # 0.05 s, and a commit on a slow disk


@pytest.mark.parametrize("damage", ["cut", "garble", "zero"])
def test_a_torn_write_costs_the_last_rows_only(tmp_path, damage):
    """The files as a power cut leaves them: the end of the WAL is not what was written."""
    path, torn = tmp_path / "journal.sqlite", tmp_path / "torn" / "journal.sqlite"
    torn.parent.mkdir()
    journal = Journal(path, 100, Health())
    for batch in range(10):
        for seq in range(1, 21):
            journal.put(make_message(20 * batch + seq))
        until(lambda batch=batch: journal.backlog == 0 and journal._writer._written.id == 20 * (batch + 1))
    content = path.with_name(path.name + "-wal").read_bytes()
    torn.write_bytes(path.read_bytes())
    journal.close()
    at = random.Random(2)
    counts = []
    for _ in range(8):
        keep = at.randrange(len(content) // 4, len(content))
        rest = {"cut": b"", "garble": at.randbytes(len(content) - keep), "zero": bytes(len(content) - keep)}
        torn.with_name(torn.name + "-wal").write_bytes(content[:keep] + rest[damage])
        before = torn.read_bytes()
        journal = Journal(torn, 100, Health())
        counts.append(journal.head.id)
        assert journal.set_aside is None
        journal.put(make_message(1, boot_id="1" * 32))
        journal.close()
        assert verify(torn).rows == counts[-1] + 1
        torn.write_bytes(before)
    assert all(count % 20 == 0 for count in counts)
    assert max(counts) > 0


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all, but long enough to look", os.urandom(8192)]
)
def test_a_journal_damaged_at_the_start_is_set_aside_and_kept(tmp_path, content):
    path, wal = tmp_path / "journal.sqlite", b"what was written last" * 1000
    path.write_bytes(content)
    path.with_name(path.name + "-wal").write_bytes(wal)
    journal = Journal(path, 100, Health())
    journal.put(make_message(1))
    journal.close()
    assert seqs(path) == [1]
    (aside,) = tmp_path.glob("journal.sqlite.damaged-*Z")
    assert aside.read_bytes() == content
    assert aside.with_name(aside.name + "-wal").read_bytes() == wal
    assert aside.name in verify(path).beginning["note"]
    assert aside.name in journal.set_aside


def garble(path):
    with path.open("r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)


def replace(path):
    other = path.with_name("other.sqlite")
    write(other, 3)
    other.replace(path)


COPY = "INSERT INTO verdicts SELECT 99, " + ", ".join([*COLUMNS, "message", "previous", "hash"])
FAULTS = {
    "garbled": garble,
    "removed": Path.unlink,
    "replaced": replace,
    "a row added": lambda path: change(path, f"{COPY} FROM verdicts"),
    "the last row removed": lambda path: change(path, "DELETE FROM verdicts WHERE id = 1"),
    "a table dropped": lambda path: change(path, "DROP TABLE verdicts"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_journal_damaged_in_mid_run_is_set_aside_and_nothing_queued_is_lost(tmp_path, fault):
    path = tmp_path / "journal.sqlite"
    health = Health()
    journal = Journal(path, 100, health)
    journal.put(make_message(1))
    until(lambda: journal.head.id == 1)
    with closing(sqlite3.connect(path)) as database:  # so that the file itself has it all
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    FAULTS[fault](path)
    for seq in range(2, 51):
        journal.put(make_message(seq))
    until(lambda: journal.set_aside and journal.backlog == 0)
    journal.close()
    assert seqs(path) == list(range(2, 51))
    assert (journal.dropped, journal.failing, health.failure) == (0, None, None)
    found = verify(path)
    assert "the journal before this one is journal.sqlite.damaged-" in found.beginning["note"]
    assert found.gaps == [f"camera cam1, start {'0' * 32}: no row for seq 1"]


def test_a_disk_that_damages_everything_is_not_filled_with_damaged_files(tmp_path, monkeypatch):
    """The second damaged file waits in its place, untouched, until it may be set aside as well."""
    monkeypatch.setattr(journal_writer, "ASIDE_EVERY_S", 2.5)
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"x" * 2000)
    journal = Journal(path, 100, Health())
    journal.put(make_message(1))
    until(lambda: seqs(path) == [1])
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("CREATE TABLE strange (x)")
    for side in ("-wal", "-shm", ""):
        (tmp_path / f"other.sqlite{side}").replace(f"{path}{side}")
    other.close()  # moved: leaves its WAL as it is
    content = Path(f"{path}-wal").read_bytes()
    journal.put(make_message(2))
    until(lambda: journal.failing)
    time.sleep(0.7)
    assert Path(f"{path}-wal").read_bytes() == content
    assert len(list(tmp_path.glob("*.damaged-*Z"))) == 1
    until(lambda: journal.backlog == 0)
    journal.close()
    assert len(list(tmp_path.glob("*.damaged-*Z"))) == 2
    assert [aside.read_bytes() for aside in tmp_path.glob("*Z-wal")] == [content]
    assert seqs(path) == [2]


def test_two_journals_set_aside_in_one_second_have_different_names(tmp_path):
    path = tmp_path / "journal.sqlite"
    for _ in range(3):
        path.write_bytes(b"x" * 2000)
        Journal(path, 100, Health()).close()
    assert len(list(tmp_path.glob("journal.sqlite.damaged-*"))) == 3


@mounting
def test_a_full_disk_costs_nothing_while_the_queue_lasts(small):
    path = small / "journal.sqlite"
    journal = Journal(path, 100, Health())
    (small / "filler").write_bytes(bytes(600_000))
    for seq in range(1, 1501):
        journal.put(make_message(seq))
    until(lambda: journal.failing)
    assert "full" in journal.failing
    assert journal.dropped == 0
    run("mount", "-o", "remount,size=8m", str(small))
    until(lambda: journal.backlog == 0)
    journal.close()
    assert seqs(path) == list(range(1, 1501))
    assert verify(path).gap_count == 0
    assert journal.failing is None


@mounting
def test_a_disk_that_stays_full_costs_the_newest_counted_and_does_not_hold_up_the_end(small):
    health = Health()
    journal = Journal(small / "journal.sqlite", 100, health, depth=1000)
    (small / "filler").write_bytes(bytes(700_000))
    for seq in range(1, 3001):
        journal.put(make_message(seq))
    until(lambda: journal.failing)
    assert health.ages_s()["journal"] < 2.0
    began_s = time.monotonic()
    journal.close(0.3)
    assert time.monotonic() - began_s < 2.5
    found = verify(small / "journal.sqlite")
    assert found.rows + journal.dropped == 3000
    assert seqs(small / "journal.sqlite") == list(range(1, found.rows + 1))


@mounting
def test_a_read_only_disk_refuses_to_start_and_can_still_be_verified(small):
    path = small / "journal.sqlite"
    write(path, 20)
    run("mount", "-o", "remount,ro", str(small))
    with pytest.raises(StateError, match="can't write journal"):
        Journal(path, 100, Health())
    assert verify(path).rows == 20


@mounting
def test_a_disk_that_turns_read_only_and_is_mounted_again_costs_nothing(disk):
    image, folder = disk
    path = folder / "journal.sqlite"
    journal = Journal(path, 100, Health())
    journal.put(make_message(1))
    until(lambda: journal.head.id == 1)
    if run("mount", "-o", "remount,abort", str(folder)).returncode:
        pytest.skip("this ext4 can't be broken")
    for seq in range(2, 101):
        journal.put(make_message(seq))
    until(lambda: journal.failing)
    assert journal.dropped == 0
    run("umount", "--lazy", str(folder))
    mounted("-o", "loop", image, folder)
    until(lambda: journal.backlog == 0)
    journal.close()
    assert seqs(path) == list(range(1, 101))
    assert journal.set_aside is None
    assert verify(path, journal.head).gap_count == 0


@mounting
def test_no_journal_is_begun_below_the_mount_point_of_a_disk_that_is_gone(small):
    journal = Journal(small / "journal.sqlite", 100, Health())
    run("umount", "--lazy", str(small))
    journal.put(make_message(1))
    until(lambda: journal.failing)
    assert "no longer mounted" in journal.failing
    journal.close(0.1)
    assert list(small.iterdir()) == []
    assert (journal.dropped, journal.set_aside) == (1, None)


@mounting
def test_a_stalled_disk_holds_up_nobody_and_is_told(disk, monkeypatch):
    monkeypatch.setattr("inspectord.journal.STALLED_S", 0.3)
    _, folder = disk
    journal = Journal(folder / "journal.sqlite", 100, Health(), before_publish=True)
    assert journal.begin(make_message(1)).wait(2)
    if run("fsfreeze", "--freeze", str(folder)).returncode:
        pytest.skip("can't freeze here")
    began_s = time.monotonic()
    waiting = [journal.begin(make_message(seq)) for seq in range(2, 102)]
    assert time.monotonic() - began_s < 0.1
    assert not waiting[0].wait(0.2)
    until(lambda: journal.failing)
    assert "has not answered" in journal.failing
    run("fsfreeze", "--unfreeze", str(folder))
    assert waiting[-1].wait(5)
    journal.close()
    assert seqs(folder / "journal.sqlite") == list(range(1, 102))


def test_a_lock_held_by_another_program_costs_nothing(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite", 100, Health())
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as blocker:
        blocker.execute("BEGIN EXCLUSIVE")
        for seq in range(1, 1501):
            journal.put(make_message(seq))
        until(lambda: journal.failing)
        assert "locked" in journal.failing
        blocker.execute("ROLLBACK")
    journal.close()
    assert seqs(journal.path) == list(range(1, 1501))
    assert (journal.failing, journal.dropped) == (None, 0)


def test_a_power_cut_can_not_take_what_the_head_says(tmp_path):
    """What SQLite was told to sync, seen from outside: strace would be needed to see more."""
    synced = []
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, 100, Health())
    real = journal._writer._file.sync
    journal._writer._file.sync = lambda: (real(), synced.append(journal._writer._written.id))
    for seq in range(1, 11):
        journal.put(make_message(seq))
    until(lambda: journal.head.id == 10)
    journal.close()
    assert synced[-1] == 10
    assert journal_writer.SYNC_S <= 1.0
