"""Files below a folder inside a quota, each whole or not there; owned by one thread."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from pathlib import Path

NEVER = "never.tmp"
# The last of a disk is the journal's: a verdict's row is worth more than its picture.
SPARED_SHARE, SPARED_BYTES = 20, 256 << 20  # one part in so many of the disk, but no more than so much
NamedData = list[tuple[str, bytes]]


class NoRoomError(Exception):
    """The files would not fit, and deleting older ones would not help."""


class ImageFiles:
    """The oldest files go when the quota is reached, those of earlier starts included."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self._folder, self._quota_bytes = folder, quota_bytes
        self._kept: deque[tuple[str, int]] = deque()  # names, as a Path takes four times the memory
        self._total = 0
        self._has_looked = False
        self._leftovers: list[Path] = []  # of a reject that failed on a disk that deletes nothing either

    def look(self) -> None:
        """Take in what is there already; done by add() where it was not yet possible. Raises OSError."""
        if not self._has_looked:
            self._kept = _kept_files(self._folder)
            self._total = sum(size for _, size in self._kept)
            self._has_looked = True

    def add(self, files: NamedData) -> None:
        """All of them, or none. Raises NoRoomError, or OSError as the disk gives it."""
        self.look()
        self._tidy_up()
        needed = sum(len(data) for _, data in files)
        self._make_room(needed)
        self._spare_the_journal(needed)
        written = []
        try:
            for name, data in files:
                path = self._folder / name
                self._leftovers += [path, unfinished(path)]
                write_atomically(path, data)
                written.append((str(path), len(data)))
        except OSError:
            with suppress(OSError):
                self._tidy_up()
            raise
        self._leftovers.clear()
        self._kept.extend(written)
        self._total += needed

    def probe(self) -> None:
        """Raises as add() would for a small file."""
        self.look()
        self._tidy_up()
        self._spare_the_journal(0)
        prove_writable(self._folder)

    def _tidy_up(self) -> None:
        while self._leftovers:
            with suppress(NotADirectoryError, IsADirectoryError):  # not of our making
                self._leftovers[-1].unlink(missing_ok=True)
            self._leftovers.pop()

    def _make_room(self, needed: int) -> None:
        if needed > self._quota_bytes:
            raise NoRoomError(f"{needed / 1e6:.1f} MB are more than images.quota_mb; raise it")
        while self._total + needed > self._quota_bytes:
            name, size = self._kept[0]
            path = Path(name)
            path.unlink(missing_ok=True)  # before it is forgotten: on a read-only disk it stays, and counts
            self._kept.popleft()
            self._total -= size
            with suppress(OSError):
                _remove_if_empty(path.parent, self._folder)

    def _spare_the_journal(self, needed: int) -> None:
        disk = os.statvfs(self._folder.parent)
        spared = min(disk.f_blocks * disk.f_frsize // SPARED_SHARE, SPARED_BYTES)
        free = disk.f_bavail * disk.f_frsize
        if free - needed < spared:
            raise NoRoomError(
                f"the last {spared / 1e6:.1f} MB of the disk are the journal's; free space on it"
            )


def prove_writable(folder: Path) -> None:
    """Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NEVER, b"x")
    (folder / NEVER).unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Under its name it is whole or not there. Raises OSError, and may then leave unfinished(path) behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished(path).write_bytes(data)
    unfinished(path).replace(path)


def unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _kept_files(folder: Path) -> deque[tuple[str, int]]:
    """Files and sizes below folder, oldest first; what a crash left unfinished is removed."""
    found = []
    for path in folder.rglob("*_*.*"):
        with suppress(FileNotFoundError):  # somebody may tidy up there at the same time
            if path.suffix == ".tmp":
                path.unlink()
            elif path.is_file():
                status = path.stat()
                found.append((status.st_mtime_ns, str(path), status.st_size))
    return deque((name, size) for _, name, size in sorted(found))


def _remove_if_empty(folder: Path, top: Path) -> None:
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
