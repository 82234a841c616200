"""Replay of a video file, each frame a trigger."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np

from inspectord.errors import SourceError
from inspectord.frame import FrameHeader, FrameStatus, Pixels
from inspectord.settings import VideoSource
from inspectord.sources.base import Item, Pace, Shape, fitted, shape_of, stamped


class VideoFrames:
    """Frames numbered from 1, at the file's own rate unless the settings give one."""

    waits_for_trigger = False
    backpressure = False

    def __init__(self, source: VideoSource, frame_shape: Shape | None, done: int = 0) -> None:
        self._source = source
        self._shape = frame_shape
        self.ended = False
        self._count = self._done = done  # delivered
        self._read: Item | None = None

    def __enter__(self) -> Self:
        self._video = open_video(self._source.path)
        rate_hz = self._source.rate_hz or self._video.get(cv2.CAP_PROP_FPS)
        if not 0 < rate_hz <= 10_000:
            self._video.release()
            raise SourceError(f"{self._source.path} states no frame rate; set rate_hz in its source")
        self._leave_out(self._done)
        self._pace = Pace(rate_hz)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._video.release()

    def next(self, timeout_s: float) -> Item | None:
        """The next frame, decoded before it is due."""
        if self._read is None:
            self._read = self._read_next()
        if self._read is None or not self._pace.wait(self._count - self._done, timeout_s):
            return None
        (header, pixels), self._read = self._read, None
        self._count += 1
        return stamped(header), pixels

    def _leave_out(self, frames: int) -> None:
        """By decoding them: seeking in a video is not exact with every codec."""
        length = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))
        for _ in range(frames % length if self._source.loop and length > 0 else frames):
            if not self._video.grab():
                return

    def _read_next(self) -> Item | None:
        found, image = self._video.read()
        if not found and self._source.loop and self._count > 0:
            self._video.release()
            self._video = open_video(self._source.path)
            found, image = self._video.read()
        if not found:
            self.ended = True
            return None
        header = FrameHeader(FrameStatus.OK, self._count + 1, trigger_id=self._count + 1)
        pixels = self._as_recipe_reads(np.asarray(image, np.uint8))
        self._shape = self._shape or shape_of(pixels)
        return fitted(header, pixels, self._shape, self._source.letterbox)

    def _as_recipe_reads(self, image: Pixels) -> Pixels:
        """Decoders hand out a grey video as three equal channels; one of them is the grey image."""
        if image.ndim == 2:
            return image[:, :, np.newaxis]
        if self._shape is not None and self._shape[2] == 1 and _is_grey(image):
            return np.ascontiguousarray(image[:, :, :1])
        return image


def _is_grey(image: Pixels) -> bool:
    blue, green, red = image[:, :, 0], image[:, :, 1], image[:, :, 2]
    return bool((blue == green).all() and (green == red).all())


def open_video(path: Path) -> cv2.VideoCapture:
    """Raises SourceError for a file that is missing or that OpenCV can't read."""
    if not path.is_file():
        raise SourceError(f"no video file {path}; check the source's path")
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise SourceError(f"OpenCV can't read {path}; convert it to MJPEG in .avi or H.264 in .mp4")
    return video
