"""Changed copies of good frames: turned, shifted or relit ones that still are good, and ones that are not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import cv2
import numpy as np

from calibrate.region import Region
from inspectord.frame import Pixels

Box: TypeAlias = tuple[slice, slice]  # rows and columns of a frame

MAX_ANGLE_DEG = 10.0
MAX_SHIFT = 1 / 16  # of the side: the play of the paper's 224-pixel crop in a 256-pixel frame


def augmented(pixels: Pixels, digest: str, copy: int, seed: int) -> Pixels:
    """One copy of a frame (height, width, channels), turned by up to 10 degrees and shifted as a random crop.

    The same frame, copy number and seed always give the same pixels. Defard et al. 2021, section V.C
    (PaDiM on unaligned images).
    """
    rng = np.random.default_rng([int(digest[:16], 16), copy, seed])
    height, width = pixels.shape[:2]
    angle = rng.uniform(-MAX_ANGLE_DEG, MAX_ANGLE_DEG)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    matrix[:, 2] += rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * (width, height)
    turned = cv2.warpAffine(
        pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(turned, np.uint8).reshape(pixels.shape)


def relit(pixels: Pixels, digest: str, seed: int) -> Pixels:
    """A frame (height, width, channels) as under other light: gain and gamma differ by up to 8 and 11 %, the
    offset by 5 grey levels, a slope and a fall-off by 6 %, the colours by 3 %; a little out of focus or
    sharper; noise of up to 2 grey levels.

    The same frame and seed always give the same pixels.
    """
    rng = np.random.default_rng([int(digest[16:32], 16), seed])
    height, width, channels = pixels.shape
    sharper = rng.uniform(-0.6, 0.4) if rng.random() < 0.5 else 0.0
    softened = cv2.GaussianBlur(pixels, (0, 0), 1.0).reshape(pixels.shape)
    focused = cv2.addWeighted(pixels, 1 + sharper, softened, -sharper, 0).reshape(pixels.shape)
    gamma, offset = np.exp(rng.uniform(-0.11, 0.11)), rng.uniform(-5, 5)
    colours = np.exp(rng.uniform(-0.03, 0.03, channels)) if channels > 1 else np.ones(1)
    gains = 255 * np.exp(rng.uniform(-0.08, 0.08)) * colours
    tones = (((np.arange(256) / 255) ** gamma)[:, None] * gains + offset).astype(np.float32)
    image = np.asarray(cv2.LUT(focused, tones[None]), np.float32).reshape(pixels.shape)
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    way, slope, fall = rng.uniform(0, 2 * np.pi), rng.uniform(-0.06, 0.06), rng.uniform(0, 0.03)
    down, across = slope * np.sin(way) * y - fall * y**2, slope * np.cos(way) * x - fall * x**2
    image *= (1 + down[:, None] + across)[..., None].astype(np.float32)
    image += np.float32(rng.uniform(0, 2)) * rng.standard_normal((height, width, 1), np.float32)
    return np.clip(np.rint(image, out=image), 0, 255, out=image).astype(np.uint8)


def marked(pixels: Pixels, region: Region) -> Pixels:
    """A frame with a square of an eighth of the region's side, where most is seen."""
    place, _ = deepest(region)
    return painted(pixels, [box_around(region, place, half_of(region))])


def half_of(region: Region) -> int:
    """Half the side of that square, in pixels."""
    return max(1, min(region.roi[2:]) // 16)


def box_around(region: Region, place: tuple[int, int], half: int) -> Box:
    """A square of twice `half` pixels around a place (row, column), cut at the region's border."""
    x, y, width, height = region.roi
    row, column = place
    return (
        slice(max(y, row - half), min(y + height, row + half)),
        slice(max(x, column - half), min(x + width, column + half)),
    )


def painted(pixels: Pixels, squares: Iterable[Box]) -> Pixels:
    """A copy of a frame, half the grey scale off inside the squares, where they overlap too."""
    struck = np.zeros(pixels.shape[:2], np.bool_)
    for box in squares:
        struck[box] = True
    out = pixels.copy()
    out[struck] += np.uint8(128)
    return out


def deepest(region: Region) -> tuple[tuple[int, int], float]:
    """The pixel (row, column of the frame) farthest from ignored ones and from the border, and how far."""
    seen = np.pad(~region.crop(), 1).astype(np.uint8)
    depth = cv2.distanceTransform(seen, cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return (region.roi[1] + int(row), region.roi[0] + int(column)), float(depth[row, column])
