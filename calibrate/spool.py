"""Arrays larger than memory, on disk: written frame by frame, read position block by position block."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inspectord.errors import FitError


class Spool:
    """A float32 array (frames, positions, depth) in a file, laid out block after block of positions.

    Plain reads and writes, no mapping: what lies here never counts as resident memory. The file has no
    name, so that nothing is left of it however the process ends.
    """

    def __init__(self, folder: Path, frames: int, positions: int, depth: int, block: int) -> None:
        self.shape, self.block = (frames, positions, depth), block
        self._size = frames * positions * depth * 4
        free = shutil.disk_usage(folder).free
        if free < self._size * 1.05:
            raise FitError(
                f"{folder} has {free / 1e9:.1f} GB free and the fit needs {self._size / 1e9:.1f} GB there "
                "while it runs; free some, or set TMPDIR to a larger disk"
            )
        self._file = tempfile.TemporaryFile(dir=folder)
        self._fd = self._file.fileno()

    def write_frame(self, frame: int, values: npt.NDArray[np.float32]) -> None:
        """values (positions, depth)."""
        for start, width in self.blocks():
            part = np.ascontiguousarray(values[start : start + width], np.float32)
            _write_all(self._fd, part.data.cast("B"), self._offset(frame, start, width))

    def read_block(self, start: int, width: int) -> npt.NDArray[np.float32]:
        """(frames, width, depth) of the positions from start."""
        frames, _, depth = self.shape
        out = np.empty((frames, width, depth), np.float32)
        _read_all(self._fd, out.data.cast("B"), self._offset(0, start, width))
        return out

    def write_block(self, start: int, values: npt.NDArray[np.float32]) -> None:
        """values (frames, width, depth)."""
        data = np.ascontiguousarray(values, np.float32).data.cast("B")
        _write_all(self._fd, data, self._offset(0, start, values.shape[1]))

    def read_frame(self, frame: int) -> npt.NDArray[np.float32]:
        """(positions, depth)."""
        out = np.empty(self.shape[1:], np.float32)
        for start, width in self.blocks():
            part = out[start : start + width]
            _read_all(self._fd, part.data.cast("B"), self._offset(frame, start, width))
        return out

    def blocks(self) -> list[tuple[int, int]]:
        """(first position, width) of each block."""
        positions = self.shape[1]
        return [(start, min(self.block, positions - start)) for start in range(0, positions, self.block)]

    def close(self) -> None:
        self._file.close()

    def _offset(self, frame: int, start: int, width: int) -> int:
        frames, _, depth = self.shape
        return (frames * start + frame * width) * depth * 4


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _read_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.preadv(fd, [data], offset)
        if done == 0:
            raise FitError("the fit's temporary file ended early; is the disk full or was it removed?")
        data, offset = data[done:], offset + done


class Scratch:
    """A temporary folder for spools, below TMPDIR; gone afterwards, whatever happened."""

    def __enter__(self) -> Path:
        self._folder = tempfile.TemporaryDirectory(prefix="calibrate-")
        return Path(self._folder.name)

    def __exit__(self, *_: Any) -> None:
        self._folder.cleanup()
