"""Where to look: a rectangle of the frame, less what the operator masks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inspectord.errors import FitError
from inspectord.frame import Pixels
from inspectord.sources.files import read_image

Mask: TypeAlias = npt.NDArray[np.bool_]
Polygon: TypeAlias = tuple[tuple[int, int], ...]

FILL = 128  # what the network sees where pixels are ignored
FAR_PX = 1_000_000  # corners may lie outside the frame, but OpenCV's arithmetic ends somewhere


@dataclass(frozen=True, slots=True)
class Region:
    """roi is (x, y, width, height) in frame pixels; ignored is True where a pixel must not count."""

    roi: tuple[int, int, int, int]
    ignored: Mask  # (frame height, frame width)

    def crop(self) -> Mask:
        """The ignored pixels inside the roi, (roi height, roi width)."""
        x, y, width, height = self.roi
        return self.ignored[y : y + height, x : x + width]

    def looked_at(self) -> Mask:
        """True inside the roi where no pixel is ignored, (frame height, frame width)."""
        x, y, width, height = self.roi
        seen = np.zeros_like(self.ignored)
        seen[y : y + height, x : x + width] = ~self.crop()
        return seen

    def hidden(self, pixels: Pixels) -> Pixels:
        """A copy of a frame whose ignored pixels are FILL, so that moving it can't bring them into view."""
        out = pixels.copy()
        out[self.ignored] = FILL
        return out

    @property
    def ignored_fraction(self) -> float:
        """Share of the roi that does not count, 0 to 1."""
        return float(self.crop().mean())


def make_region(
    shape: Sequence[int],
    roi: tuple[int, int, int, int] | None = None,
    ignore_png: Path | None = None,
    polygons: Sequence[Polygon] = (),
) -> Region:
    """The region of a frame of shape (height, width, ...); without a roi the whole frame.

    Raises FitError where the roi leaves the frame, a mask has another size, or nothing remains to look at.
    """
    height, width = shape[:2]
    roi = (0, 0, width, height) if roi is None else _inside(roi, width, height)
    ignored = np.zeros((height, width), np.uint8)
    if ignore_png is not None:
        ignored |= _read_mask(ignore_png, width, height)
    for polygon in polygons:
        ignored |= _fill(polygon, width, height)
    region = Region(roi, ignored.astype(np.bool_))
    if region.crop().all():
        raise FitError("the masks cover the whole region of interest; make them or --roi leave something")
    return region


def _inside(roi: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    x, y, w, h = roi
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise FitError(
            f"--roi {x},{y},{w},{h} leaves the frame, which is {width}x{height}; "
            "give x,y,width,height with x+width and y+height inside it"
        )
    return roi


def _read_mask(path: Path, width: int, height: int) -> npt.NDArray[np.uint8]:
    """1 where the mask image is white (over half of full scale in any channel), else 0."""
    pixels = read_image(path)
    if pixels.shape[:2] != (height, width):
        raise FitError(
            f"mask {path} is {pixels.shape[1]}x{pixels.shape[0]}, the frames are {width}x{height}; "
            "draw it over one of the frames (white = ignored)"
        )
    white = np.asarray(pixels.max(axis=2) > 127, np.uint8)
    if not white.any():
        raise FitError(
            f"mask {path} has no white pixel, so it ignores nothing; paint white what must not count"
        )
    return white


def _fill(polygon: Polygon, width: int, height: int) -> npt.NDArray[np.uint8]:
    filled = np.zeros((height, width), np.uint8)
    cv2.fillPoly(filled, [np.array(polygon, np.int32)], (1,))
    if not filled.any():
        corners = " ".join(f"{x},{y}" for x, y in polygon)
        raise FitError(
            f"--ignore-polygon '{corners}' lies outside the frame, which is {width}x{height}; "
            "give its corners in pixels of the frame"
        )
    return filled


def parse_roi(text: str) -> tuple[int, int, int, int]:
    """'x,y,width,height' in frame pixels. Raises ValueError saying what was expected."""
    numbers = _numbers(text)
    if len(numbers) != 4:
        raise ValueError(f"{text!r} is no region; give x,y,width,height in pixels, as in 40,0,560,480")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def parse_polygon(text: str) -> Polygon:
    """'x,y x,y x,y ...', three corners or more. Raises ValueError saying what was expected."""
    corners = [_numbers(pair) for pair in text.split()]
    if len(corners) < 3 or any(len(corner) != 2 for corner in corners):
        raise ValueError(f"{text!r} is no polygon; give three or more corners, as in '0,0 80,0 0,80'")
    return tuple((corner[0], corner[1]) for corner in corners)


def _numbers(text: str) -> list[int]:
    """The numbers between the commas; empty where one is none, or beyond any frame."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        return []
    return numbers if all(abs(number) <= FAR_PX for number in numbers) else []
