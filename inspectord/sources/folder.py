"""Replay of image files in name order, each one a trigger."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import TracebackType
from typing import Self

from inspectord.errors import FrameError
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.settings import FolderSource
from inspectord.sources.base import Item, Pace, Shape, fitted, shape_of, stamped
from inspectord.sources.files import ImageKindError, list_images, read_image

log = logging.getLogger(__name__)


class FolderFrames:
    """Frames numbered from 1; part_id is the path below the folder, such as good/0001.png."""

    waits_for_trigger = False

    def __init__(self, source: FolderSource, frame_shape: Shape | None, done: int = 0) -> None:
        self._source = source
        self._shape = frame_shape
        self.backpressure = source.rate_hz is None
        self.ended = False
        self._pace: Pace | None = None
        self._number = self._done = done
        self._read: Item | None = None

    def __enter__(self) -> Self:
        self._paths = list_images(self._source.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read = None

    def next(self, timeout_s: float) -> Item | None:
        """The next file, read before it is due; one that can't be used comes as a header that says so."""
        if self._read is None:
            self._read = self._read_next()
        if self._read is None or not self._is_due(timeout_s):
            return None
        (header, pixels), self._read = self._read, None
        self._number += 1
        return stamped(header), pixels

    def _is_due(self, timeout_s: float) -> bool:
        if self._source.rate_hz is None:
            return True
        if self._pace is None:
            self._pace = Pace(self._source.rate_hz)
        return self._pace.wait(self._number - self._done, timeout_s)

    def _read_next(self) -> Item | None:
        if self._number >= len(self._paths) and not self._source.loop:
            self.ended = True
            return None
        path = self._paths[self._number % len(self._paths)]
        part_id = path.relative_to(self._source.path).as_posix()
        frame_id = self._number + 1
        header = FrameHeader(FrameStatus.OK, frame_id, trigger_id=frame_id, part_id=part_id)
        try:
            pixels = read_image(path)
        except ImageKindError as error:
            log.warning("%s", error)
            return replace(header, status=FrameStatus.WRONG_SHAPE), None
        except FrameError as error:
            log.warning("%s", error)
            return replace(header, status=FrameStatus.UNREADABLE), None
        self._shape = self._shape or shape_of(pixels)
        return fitted(header, pixels, self._shape, self._source.letterbox)
