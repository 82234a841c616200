"""Faults of the disk, of the journal's file, of the images' folder, of memory and of file descriptors.

In all of them the line goes on: verdicts come in time, heartbeats say degraded and why, and what is lost of
the evidence is counted. When the fault is over, the daemon is ready again by itself. A daemon that is started
on such a disk refuses and says why, so none is killed meanwhile by a second fault (line.lock).
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.disk import PRELOADED, bad, filled, mounted, no_bad_disk, no_mounts
from tests.faults.evidence import read_journal
from tests.faults.line import Line, Setup
from tests.faults.oracle import Promises
from tests.faults.registry import fault
from tests.helpers_recipe import write_recipe

BAD_DISK = Setup(environment=PRELOADED)
SMALL_QUOTA = Setup(settings={"images": {"quota_mb": 1}})
ROWS_MAY_LACK = Promises(journal_complete=False)
BACK_S = 5.0  # the journal tries again every second at least
QUOTA = 1 << 20
PATIENCE_S = 30.0  # a second fault at the same time may have cost the line its camera


@fault(BAD_DISK, recovers_s=BACK_S, needs=no_bad_disk)
def disk_full(line: Line, rng: random.Random) -> float:
    """Every write fails for want of space (ENOSPC) for 1 to 3 s."""
    return _failing_disk(line, rng, errno.ENOSPC)


@fault(BAD_DISK, recovers_s=BACK_S, needs=no_bad_disk)
def disk_read_only(line: Line, rng: random.Random) -> float:
    """The disk becomes read-only (EROFS) for 1 to 3 s."""
    return _failing_disk(line, rng, errno.EROFS)


@fault(BAD_DISK, recovers_s=BACK_S, needs=no_bad_disk)
def disk_errors(line: Line, rng: random.Random) -> float:
    """Every write fails with an I/O error (EIO) for 1 to 3 s."""
    return _failing_disk(line, rng, errno.EIO)


@fault(BAD_DISK, recovers_s=10.0, needs=no_bad_disk)
def disk_slow(line: Line, rng: random.Random) -> float:
    """Every write takes 100 to 500 ms longer, for 3 s."""
    with bad(line, delay_ms=rng.randrange(100, 500)):
        _inspects_for(line, 3.0)
    return _well_again(line, 20)


@fault(BAD_DISK, recovers_s=10.0, needs=no_bad_disk)
def disk_hangs(line: Line, rng: random.Random) -> float:
    """Every write takes 4 s: the disk as good as hangs."""
    with bad(line, delay_ms=4000):
        _troubled(line, "journal")
        _inspects_for(line, 0.5)
    return _well_again(line, 20)


@fault(recovers_s=BACK_S, strikes_a_run=4, pairs=False, needs=no_mounts)
def small_disk_filled(line: Line, rng: random.Random) -> float:
    """A real file system of 4 MB is filled up to the last byte, and freed after 2 s."""
    with mounted(line, "mount", "-t", "tmpfs", "-o", "size=4m", "inspectord-faults") as folder:
        with filled(folder):
            _troubled(line, "journal")
            _inspects_for(line, 2.0)
        return _well_again(line)


@fault(recovers_s=BACK_S, strikes_a_run=4, pairs=False, needs=no_mounts)
def disk_frozen(line: Line, rng: random.Random) -> float:
    """A real ext4 is frozen for 4 s: every write waits in the kernel, where nothing can interrupt it."""
    with mounted(line, *_ext4(line)) as folder:
        subprocess.run(["fsfreeze", "-f", str(folder)], check=True, timeout=10)
        try:
            _troubled(line, "journal")
            _inspects_for(line, 1.0)
        finally:
            subprocess.run(["fsfreeze", "-u", str(folder)], check=True, timeout=10)
        return _well_again(line)


@fault(promises=ROWS_MAY_LACK, strikes_a_run=4, pairs=False, needs=no_mounts)
def disk_aborted(line: Line, rng: random.Random) -> float:
    """A real ext4 meets an error and goes read-only for good; the line runs on until a person mends it."""
    with mounted(line, *_ext4(line)) as folder:
        subprocess.run(["mount", "-o", "remount,abort", str(folder)], check=False, timeout=10)
        took_s = _troubled(line, "journal")
        _inspects_for(line, 1.0)
        return took_s


@fault(recovers_s=BACK_S)
def journal_locked(line: Line, rng: random.Random) -> float:
    """Another process holds the journal's lock for 2 to 4 s."""
    with line.lock, closing(sqlite3.connect(_journal(line), timeout=5, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        end_s = time.monotonic() + rng.uniform(2.0, 4.0)
        _troubled(line, "journal")
        _inspects_for(line, max(0.1, end_s - time.monotonic()))
        other.execute("ROLLBACK")
    return _well_again(line)


@fault(promises=ROWS_MAY_LACK, strikes_a_run=5, pairs=False)
def journal_overwritten(line: Line, rng: random.Random) -> float:
    """Garbage over pages of the journal, its header or its WAL, while the daemon writes it."""
    _overwrite(_journal(line), rng, rng.choice(["", "", "-wal"]))
    _inspects_for(line, 1.5)
    line.stop()
    took_s = line.restart()
    _replace_if_unreadable(line)
    return took_s


@fault(promises=ROWS_MAY_LACK, recovers_s=5.0, strikes_a_run=5, pairs=False)
def journal_damaged_at_start(line: Line, rng: random.Random) -> float:
    """The journal's header is garbage at the start: it is set aside by name, and a new one begun."""
    line.stop()
    with _journal(line).open("r+b") as file:
        file.write(rng.randbytes(4096))
    took_s = line.restart()
    assert list(line.state_dir.glob("journal.sqlite.damaged-*")), "the damaged journal was not kept"
    assert "set aside" in line.recorder.state["troubles"][0], "heartbeats say nothing of the damaged journal"
    read_journal(_journal(line))
    return took_s


@fault(promises=ROWS_MAY_LACK, recovers_s=BACK_S, strikes_a_run=1)  # a second one has to wait for a minute
def journal_deleted(line: Line, rng: random.Random) -> float:
    """Somebody deletes the journal's files under the running daemon."""
    for side in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            _journal(line).with_name(f"journal.sqlite{side}").unlink()
    took_s = line.recorder.wait(_journal(line).exists, 10, "a new journal")
    _inspects_for(line, 0.5)
    return took_s


@fault(SMALL_QUOTA)
def image_quota(line: Line, rng: random.Random) -> None:
    """More rejects than images.quota_mb holds: the oldest go, and it is never exceeded."""
    folder = line.state_dir / "rejects"
    line.recorder.wait(lambda: _used(folder) > 0.95 * QUOTA, 60, "the quota is nearly reached")
    written, end_s = _newest_image(folder), time.monotonic() + rng.uniform(1.0, 4.0)
    while time.monotonic() < end_s:
        used = _used(folder)
        assert used <= QUOTA, f"{used} bytes of images, the quota is {QUOTA}"
        time.sleep(0.02)
    assert _newest_image(folder) > written, "no newer image was written"


@fault(recovers_s=BACK_S)
def image_folder_removed(line: Line, rng: random.Random) -> float:
    """Somebody deletes the images' folder under the running daemon."""
    folder = line.state_dir / "rejects"
    shutil.rmtree(folder, ignore_errors=True)
    return line.recorder.wait(lambda: any(folder.rglob("*_frame.png")), 10, "images again")


@fault(recovers_s=BACK_S)
def image_folder_unwritable(line: Line, rng: random.Random) -> float:
    """A file stands where the images' folder should be, for 1 to 2 s."""
    with line.lock:
        _replace_image_folder(line, rng.uniform(0.5, 1.5))
    return _well_again(line)


def _replace_image_folder(line: Line, seconds: float) -> None:
    folder, before = line.state_dir / "rejects", line.recorder.state["images_dropped"]
    aside = folder.with_name("rejects-aside")
    folder.rename(aside)
    # The daemon may make the folder again at once.
    while True:
        try:
            folder.touch(exist_ok=False)
            break
        except FileExistsError:
            shutil.rmtree(folder, ignore_errors=True)
    try:
        _troubled(line, "reject images")
        _inspects_for(line, seconds)
        assert line.recorder.state["images_dropped"] > before, "no dropped image was counted"
    finally:
        folder.unlink()
        shutil.rmtree(aside)


@fault(recovers_s=20.0)
def file_descriptors_exhausted(line: Line, rng: random.Random) -> float:
    """The daemon may open no more files for 1 to 3 s, and its camera dies meanwhile."""
    with line.lock:
        _limit_files(line, rng)
    return line.flows(PATIENCE_S)


def _limit_files(line: Line, rng: random.Random) -> None:
    process = psutil.Process(line.pid)
    before = process.rlimit(resource.RLIMIT_NOFILE)
    camera = line.camera_pid()
    process.rlimit(
        resource.RLIMIT_NOFILE, (rng.choice([5, process.num_fds(), process.num_fds() + 3]), before[1])
    )
    try:
        _inspects_for(line, rng.uniform(0.3, 1.0))
        with suppress(ProcessLookupError):
            os.kill(camera, signal.SIGKILL)
        time.sleep(rng.uniform(0.7, 2.0))
        assert line.alive(), "the daemon ended"
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, before)


def _private_mounts() -> str | None:
    return no_mounts() or (None if shutil.which("unshare") else "no unshare")


FULL_SHM = """
mount -t tmpfs -o size=4k shm /dev/shm && head -c 4096 /dev/zero > /dev/shm/filler && exec "$@"
"""


@fault(
    Setup(wrapper=("unshare", "-m", "sh", "-c", FULL_SHM, "with-full-shm")),
    recovers_s=5.0,
    strikes_a_run=2,
    needs=_private_mounts,
)
def dev_shm_full(line: Line, rng: random.Random) -> float:
    """/dev/shm is full from the start on; rings don't live there, also not those of a new camera process."""
    os.kill(line.camera_pid(), signal.SIGKILL)
    return line.flows(20)


SCARCE = 'mount --bind "$0" /proc/meminfo && exec "$@"'


@fault(strikes_a_run=5, pairs=False, needs=_private_mounts)
def shared_memory_exhausted(line: Line, rng: random.Random) -> None:
    """A ring larger than the memory that is free: refused at the start with exit code 71, never mapped."""
    line.stop()
    try:
        _start_with_scarce_memory(line, free_mb=rng.randrange(20, 60))
    finally:
        line.restart()


def _start_with_scarce_memory(line: Line, free_mb: int) -> None:
    """The ring would need 64 MB."""
    recipes = line.folder / f"large-{time.monotonic_ns()}"
    write_recipe(recipes, "demo", shape=(512, 512, 1))
    meminfo = line.folder / "meminfo"
    meminfo.write_text(f"MemTotal: 8000000 kB\nMemFree: 1000 kB\nMemAvailable: {free_mb * 1000} kB\n")
    config = line.config()
    config["recipes_dir"] = str(recipes)
    for camera in config["cameras"]:
        camera["ring_slots"] = 256
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            SCARCE,
            str(meminfo),
            sys.executable,
            "-m",
            "inspectord",
            "run",
            "--config",
            _written(line, config),
        ],
        env=line.environment(),
        cwd=line.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 71, f"exit code {done.returncode}: {done.stderr[-300:]}"
    assert "MB of shared memory" in done.stderr
    shutil.rmtree(recipes)


def _written(line: Line, config: dict[str, Any]) -> str:
    import tomli_w

    path = line.folder / "scarce.toml"
    path.write_text(tomli_w.dumps(config), encoding="utf-8")
    return str(path)


def _failing_disk(line: Line, rng: random.Random, code: int) -> float:
    with bad(line, error=code):
        end_s = time.monotonic() + rng.uniform(1.0, 3.0)
        _troubled(line, "journal")
        _inspects_for(line, max(0.1, end_s - time.monotonic()))
    return _well_again(line)


def _inspects_for(line: Line, seconds: float) -> None:
    """Inspected parts come all the while."""
    end_s = time.monotonic() + seconds
    line.flows(PATIENCE_S)
    while time.monotonic() < end_s:
        time.sleep(0.05)
        line.flows(PATIENCE_S)


def _troubled(line: Line, what: str) -> float:
    """Seconds until a heartbeat says degraded, and names what."""

    def told() -> bool:
        state = line.recorder.state
        return state.get("state") == "degraded" and any(each.startswith(what) for each in state["troubles"])

    return line.recorder.wait(told, 10, f"degraded, because of the {what}; {line.recorder.state}")


def _well_again(line: Line, timeout_s: float = 10.0) -> float:
    """Seconds until no heartbeat tells of the disk, and the journal has caught up."""
    since_ns = time.monotonic_ns()

    def well() -> bool:
        t_ns, state = line.recorder.beats[-1]
        told = any(each.startswith(("journal", "reject images")) for each in state["troubles"])
        return t_ns > since_ns and not told and state["journal_backlog"] < 100

    return line.recorder.wait(well, timeout_s, "the disk is well again, by the heartbeats")


def _journal(line: Line) -> Path:
    return line.state_dir / "journal.sqlite"


def _overwrite(journal: Path, rng: random.Random, side: str) -> None:
    path = journal.with_name(journal.name + side)
    pages = max(1, path.stat().st_size // 4096)
    with path.open("r+b") as file:
        for page in rng.sample(range(pages), min(pages, rng.randrange(1, 20))):
            file.seek(page * 4096)
            file.write(rng.randbytes(4096))


def _replace_if_unreadable(line: Line) -> None:
    """Damage deep in old rows is found by `journal verify`, not by a start; it is moved away as that says."""
    try:
        read_journal(_journal(line))
    except (sqlite3.Error, ValueError):
        line.stop()
        for side in ("-wal", "-shm", ""):
            path = _journal(line).with_name(f"journal.sqlite{side}")
            if path.exists():
                path.rename(path.with_name(f"unreadable-{time.monotonic_ns()}{side}"))
        line.restart()


def _ext4(line: Line) -> list[str]:
    image = line.folder / f"ext4-{time.monotonic_ns()}"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=20)
    return ["mount", "-o", "loop", str(image)]


def _used(folder: Path) -> int:
    return sum(_stat(path, "st_size") for path in folder.rglob("*_*.*"))


def _newest_image(folder: Path) -> int:
    """When it was written, in ns; 0 where there is none."""
    return max((_stat(path, "st_mtime_ns") for path in folder.rglob("*_frame.png")), default=0)


def _stat(path: Path, what: str) -> int:
    """0 for a file that was deleted meanwhile."""
    try:
        return int(getattr(path.stat(), what))
    except FileNotFoundError:
        return 0
