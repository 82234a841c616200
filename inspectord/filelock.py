"""A lock file: ours alone until closed, and freed by the kernel if we are killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from inspectord.errors import StateError


class FileLock:
    """Raises StateError with `taken` where another process holds it."""

    def __init__(self, path: Path, taken: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"can't write to {path.parent} ({error.strerror}); check its owner, or choose another"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise StateError(taken) from error

    def close(self) -> None:
        os.close(self._fd)
