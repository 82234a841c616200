"""Bad disks below a line's state_dir: a preloaded library for any user, real file systems for root."""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.line import Line

SOURCE = Path(__file__).with_name("bad_disk.c")
# In a folder that only this user can write: a library that is preloaded must not be somebody else's.
LIBRARY = (
    Path.home()
    / ".cache/inspectord-faults"
    / f"bad_disk-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
)
CONTROL = "faults/disk"  # both below the daemon's working directory, which is the line's folder
PRELOADED = {"LD_PRELOAD": str(LIBRARY), "FAULT_DISK": CONTROL, "FAULT_FOLDER": "state"}


@functools.cache
def no_bad_disk() -> str | None:
    """Why the library can't be had here; it is built at the first call."""
    if LIBRARY.exists():
        return None
    if shutil.which("cc") is None:
        return "no C compiler"
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LIBRARY.parent) as folder:
        built = Path(folder) / "bad_disk.so"
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(built), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            return f"cc: {done.stderr[:200]}"
        built.replace(LIBRARY)
    return None


@functools.cache
def no_mounts() -> str | None:
    """Why file systems can't be mounted here."""
    if os.geteuid() != 0:
        return "needs root"
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "inspectord-faults", folder]
        if subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
            return "mount is not allowed"
        subprocess.run(["umount", folder], check=True, timeout=10)
    return None


@contextmanager
def bad(line: Line, error: int = 0, delay_ms: int = 0) -> Iterator[None]:
    """Inside, each write below state_dir fails with errno `error` or takes delay_ms longer.

    Raises AssertionError where no write met the fault.
    """
    with line.lock, (line.folder / CONTROL).open("r+b") as file, mmap.mmap(file.fileno(), 12) as control:
        control[:] = struct.pack("3i", error, delay_ms, 0)
        try:
            yield
        finally:
            met = struct.unpack("3i", control[:])[2]
            control[:8] = bytes(8)
    assert met > 0, "no write met the bad disk; is the library preloaded?"


@contextmanager
def mounted(line: Line, *command: str) -> Iterator[Path]:
    """The line's daemon on a file system of its own, made by `command` + its folder; its files go back after.

    The daemon is stopped and started again at both ends.
    """
    aside = line.state_dir.with_name("state-before")
    line.stop()
    shutil.copytree(line.state_dir, aside)
    subprocess.run([*command, str(line.state_dir)], check=True, capture_output=True, timeout=20)
    try:
        shutil.copytree(aside, line.state_dir, dirs_exist_ok=True)
        line.restart()
        yield line.state_dir
    finally:
        if line.alive():
            line.stop()
        shutil.rmtree(aside)
        shutil.copytree(line.state_dir, aside)
        subprocess.run(["umount", str(line.state_dir)], check=True, timeout=20)
        shutil.rmtree(line.state_dir)
        aside.rename(line.state_dir)
    line.restart()


@contextmanager
def filled(folder: Path, leaving: int = 0) -> Iterator[Path]:
    """A file takes all space of the folder's disk but `leaving` bytes."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        for _ in range(17):  # what is left below 64 kB, in ever smaller pieces
            try:
                file.write(bytes(1 << 12))
            except OSError:
                break
        if leaving:
            file.truncate(max(0, path.stat().st_size - leaving))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
