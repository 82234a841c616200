"""Shared memory that is there before it is used, and a lock on it that no dead process can keep."""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from inspectord.errors import RingError

PAGE = mmap.PAGESIZE


def reserve(size: int, name: str) -> int:
    """A memfd of at least size bytes with every page allocated; nothing of it outlives its processes.

    Raises RingError where the machine or the service's memory limit has less free.
    """
    size = -(-size // PAGE) * PAGE
    free = free_bytes()
    # Measured: posix_fallocate on a memfd beyond the free memory wakes the OOM killer instead of failing.
    if size > free:
        raise RingError(
            f"{name} needs {size / 1e6:.0f} MB of shared memory, {free / 1e6:.0f} MB are free; "
            "lower ring_slots, use a smaller frame or raise MemoryMax of the service"
        )
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        raise RingError(
            f"{name} can't reserve {size / 1e6:.0f} MB of shared memory: {error.strerror}; "
            "lower ring_slots or free memory"
        ) from error
    return fd


def free_bytes() -> int:
    """What may still be allocated: the machine's available memory, or less by a control group's limit."""
    return min([_machine_free(), *_group_free()])


def _machine_free() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * PAGE


def _group_free() -> list[int]:
    """Head room below memory.max of this process's cgroup v2 and of each group above it."""
    own = next((line[3:] for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")), "/")
    group = Path("/sys/fs/cgroup") / own.lstrip("/")
    rooms = []
    while group.is_relative_to("/sys/fs/cgroup"):
        limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
        if limit and used and limit[0].isdigit():
            rooms.append(max(0, int(limit[0]) - int(used[0])))
        group = group.parent
    return rooms


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split("\n")
    except OSError:
        return []


def await_event(event_fd: int, timeout_s: float) -> None:
    """Until the event is signalled, which clears it, or timeout_s is over."""
    waiting = select.poll()
    waiting.register(event_fd, select.POLLIN)
    if waiting.poll(math.ceil(timeout_s * 1000)):
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event_fd)


class SharedLock:
    """A lock between processes (a record lock on the memory file) and between this object's threads.

    The kernel releases it when its holder dies. A stopped holder keeps it, hence the patience.
    """

    def __init__(self, memory_fd: int) -> None:
        self._fd = memory_fd
        self._threads = threading.Lock()

    @contextlib.contextmanager
    def held(self, patience_s: float = math.inf) -> Iterator[None]:
        """Hold the lock inside the with. Raises TimeoutError after patience_s."""
        if not self._threads.acquire(timeout=-1 if patience_s == math.inf else patience_s):
            raise TimeoutError
        try:
            self._lock_file(time.monotonic() + patience_s)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _lock_file(self, deadline: float) -> None:
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                time.sleep(0.00005)
