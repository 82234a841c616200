"""A frame and its header: what the camera process says of one trigger."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]

MOST_PIXELS = 160_000_000  # of one frame or image; the largest area sensors have 151 million


class FrameStatus(IntEnum):
    """Why a header has pixels behind it (OK) or has none (all others)."""

    OK = 0
    INCOMPLETE = 1  # the transport lost packets of this frame
    LOST = 2  # a gap in the camera's frame or trigger ids
    DISPLACED = 3  # the ring was full and a newer frame took the slot
    WRONG_SHAPE = 4  # size or channels are not the recipe's
    UNREADABLE = 5  # an image file of a replay can't be decoded
    CAMERA_LOST = 6  # the camera process died or the device went away


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """One trigger as the camera process saw it.

    Times are nanoseconds; -1 stands for "this source does not know" in trigger_id and encoder. A trigger id
    that the source does not know is counted by the camera process.
    """

    status: FrameStatus
    frame_id: int  # the camera's own number; a gap means lost frames
    trigger_id: int = -1
    encoder: int = -1  # counts at exposure
    part_id: str = ""  # at most 80 bytes of UTF-8; longer ones keep their end
    exposed_ns: int = 0  # camera clock; 0 where the camera has none
    fetched_ns: int = 0  # CLOCK_MONOTONIC when the frame (or its trigger, where known) reached this box
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A header taken from the ring; slot is None where there are no pixels."""

    header: FrameHeader
    index: int  # the ring's own count since it was made: 0, 1, 2, ...
    slot: int | None


def letterbox_inner(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int, int, int]:
    """Where an image of (height, width) lies in a letterboxed frame: left, top, width, height in pixels."""
    scale = min(to_width / width, to_height / height)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    return (to_width - new_width) // 2, (to_height - new_height) // 2, new_width, new_height


def letterbox(pixels: Pixels, width: int, height: int) -> Pixels:
    """Scale an image of shape (h, w) or (h, w, c) to fit into width x height, aspect kept, edges repeated."""
    shape = (height, width, *pixels.shape[2:])
    left, top, inner_w, inner_h = letterbox_inner(pixels.shape[0], pixels.shape[1], height, width)
    if (inner_w, inner_h) != (pixels.shape[1], pixels.shape[0]):
        how = cv2.INTER_AREA if inner_w < pixels.shape[1] else cv2.INTER_LINEAR
        pixels = np.asarray(cv2.resize(pixels, (inner_w, inner_h), interpolation=how), np.uint8)
    padded = cv2.copyMakeBorder(
        pixels, top, height - inner_h - top, left, width - inner_w - left, cv2.BORDER_REPLICATE
    )
    return np.asarray(padded, np.uint8).reshape(shape)  # OpenCV drops the axis of a single channel
