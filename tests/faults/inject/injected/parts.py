"""The scripted line's parts: good or bad beyond doubt, each with its own number in its pixels.

The number stands in the first two rows, one pixel a bit, first as it is and then inverted. Its contrast of
3 % is a tenth of the recipe's limit, so that the code decides nothing; ring and recipe hand pixels on
unchanged, so that it can be read again wherever a frame turns up.
"""

from __future__ import annotations

import functools

import numpy as np

SHAPE = (64, 64, 1)
ONE, ZERO = 132, 124
BITS = 32
CAMERA_SHIFT = 24  # a code is camera << 24 | part number


def is_good(number: int) -> bool:
    """The truth about a part: every fifth one has a bright square that scores three times the limit."""
    return number % 5 != 3


def code_of(camera: int, number: int) -> int:
    return camera << CAMERA_SHIFT | number


def draw(camera: int, number: int) -> np.ndarray:
    """The frame of a part: uint8 of shape (64, 64, 1)."""
    pixels = _plain(number % 8).copy()
    if not is_good(number):
        pixels[24:28, 16:20] = 255
    bits = code_of(camera, number) >> np.arange(BITS) & 1
    pixels[0, :BITS, 0] = np.where(bits, ONE, ZERO)
    pixels[1, :BITS, 0] = np.where(bits, ZERO, ONE)
    return pixels


def read(pixels: np.ndarray | None) -> int | None:
    """The code in a frame of shape (..., height, width, channels), or None where there is none."""
    if pixels is None or pixels.shape[-2] < BITS or pixels.shape[-3] < 2:
        return None
    rows = pixels.reshape(-1, *pixels.shape[-3:])[0, :2, :BITS, 0].astype(int)
    bits = rows[0] == ONE
    if not (np.where(bits, ONE, ZERO) == rows[0]).all() or not (np.where(bits, ZERO, ONE) == rows[1]).all():
        return None
    return int((bits.astype(np.int64) << np.arange(BITS)).sum())


@functools.cache
def _plain(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-3, 4, SHAPE)
    return (128 + noise).astype(np.uint8)
