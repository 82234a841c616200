"""Camera pixel formats (PFNC) to what recipes are made of: uint8, grey or BGR.

Formats with more than 8 bits lose their low bits: value >> 2 of 10, value >> 4 of 12. Nothing is stretched,
so that the same light always gives the same value.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from inspectord.errors import FrameError
from inspectord.frame import Pixels

Rows = Pixels  # of shape (rows, bytes), whole groups of a packed format


def convert(pixel_format: str, data: Pixels, width: int, height: int, padding_x: int = 0) -> Pixels:
    """Pixels of shape (height, width, 1 or 3) in memory of their own; data is the driver's flat buffer.

    padding_x: bytes after each line. Raises FrameError for a format without a converter and for a buffer
    that is too short.
    """
    if pixel_format not in BITS:
        raise FrameError(
            f"pixel format {pixel_format} can't be read; set PixelFormat to one of {', '.join(BITS)}"
        )
    line_bits = width * BITS[pixel_format]
    if padding_x:  # each line starts on a byte of its own
        line = -(-line_bits // 8)
        rows = _cut(data, height * (line + padding_x) - padding_x, height, line + padding_x)[:, :line]
    else:  # packed formats run on from line to line
        rows = _cut(data, -(-line_bits * height // 8), 1, 0)
    flat = UNPACK[pixel_format](rows)
    if padding_x:
        flat = flat[:, : width * SAMPLES[pixel_format]]
    image = flat.reshape(-1)[: height * width * SAMPLES[pixel_format]].reshape(height, width, -1)
    return _owned(COLOUR[pixel_format](image) if pixel_format in COLOUR else image, data)


def _cut(data: Pixels, size: int, rows: int, stride: int) -> Rows:
    if data.size < size:
        raise FrameError(
            f"the camera's buffer holds {data.size} bytes of {size}; check the packet size and the link"
        )
    if not stride:
        return data[:size].reshape(1, size)
    if data.size < rows * stride:  # the last line may come without its padding
        data = np.concatenate([data, np.zeros(rows * stride - data.size, np.uint8)])
    return data[: rows * stride].reshape(rows, stride)


def _owned(image: Pixels, data: Pixels) -> Pixels:
    """Never a view of the driver's memory, which changes as soon as the buffer is queued."""
    if np.may_share_memory(image, data):
        return image.copy()
    return np.ascontiguousarray(image)


def _groups(rows: Rows, size: int) -> np.ndarray:
    """Of shape (rows, groups, size); the last group of a line is filled up with zeros."""
    short = -rows.shape[1] % size
    whole = np.pad(rows, ((0, 0), (0, short))) if short else rows
    return whole.reshape(rows.shape[0], -1, size)


def _as_is(rows: Rows) -> Rows:
    return rows


def _little_endian(bits: int) -> Callable[[Rows], Rows]:
    """One sample in two bytes, the low byte first."""

    def unpack(rows: Rows) -> Rows:
        low, high = rows[:, 0::2], rows[:, 1::2]
        return np.asarray(low >> (bits - 8) | high << (16 - bits), np.uint8)

    return unpack


def _mono10p(rows: Rows) -> Rows:
    """Four samples in five bytes, least significant bit first."""
    group = _groups(rows, 5)
    samples = [group[..., i] >> (2 * i + 2) | group[..., i + 1] << (6 - 2 * i) for i in range(3)]
    samples.append(group[..., 4])
    return np.asarray(np.stack(samples, axis=-1).reshape(rows.shape[0], -1), np.uint8)


def _mono12p(rows: Rows) -> Rows:
    """Two samples in three bytes, least significant bit first."""
    group = _groups(rows, 3)
    samples = [group[..., 0] >> 4 | group[..., 1] << 4, group[..., 2]]
    return np.asarray(np.stack(samples, axis=-1).reshape(rows.shape[0], -1), np.uint8)


def _gige_packed(rows: Rows) -> Rows:
    """Two samples in three bytes: high byte, the low bits of both, high byte."""
    return np.ascontiguousarray(_groups(rows, 3)[..., 0::2]).reshape(rows.shape[0], -1)


def _coded(code: int) -> Callable[[Pixels], Pixels]:
    def colour(image: Pixels) -> Pixels:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), code), np.uint8)

    return colour


# Bits a pixel takes in the buffer.
BITS = {
    "Mono8": 8,
    "Mono10": 16,
    "Mono12": 16,
    "Mono10p": 10,
    "Mono12p": 12,
    "Mono10Packed": 12,
    "Mono12Packed": 12,
    "BayerRG8": 8,
    "BayerGR8": 8,
    "BayerGB8": 8,
    "BayerBG8": 8,
    "RGB8": 24,
    "BGR8": 24,
    "RGBa8": 32,
    "BGRa8": 32,
}
SAMPLES = {name: {24: 3, 32: 4}.get(bits, 1) for name, bits in BITS.items()}
UNPACK: dict[str, Callable[[Rows], Rows]] = dict.fromkeys(BITS, _as_is) | {
    "Mono10": _little_endian(10),
    "Mono12": _little_endian(12),
    "Mono10p": _mono10p,
    "Mono12p": _mono12p,
    "Mono10Packed": _gige_packed,
    "Mono12Packed": _gige_packed,
}
# OpenCV's two-letter Bayer names tell of the second row; the four-letter ones are PFNC's pattern in full.
COLOUR: dict[str, Callable[[Pixels], Pixels]] = {
    "BayerRG8": _coded(cv2.COLOR_BayerRGGB2BGR),
    "BayerGR8": _coded(cv2.COLOR_BayerGRBG2BGR),
    "BayerGB8": _coded(cv2.COLOR_BayerGBRG2BGR),
    "BayerBG8": _coded(cv2.COLOR_BayerBGGR2BGR),
    "RGB8": _coded(cv2.COLOR_RGB2BGR),
    "RGBa8": _coded(cv2.COLOR_RGBA2BGR),  # alpha is no optical channel
    "BGRa8": _coded(cv2.COLOR_BGRA2BGR),
}
