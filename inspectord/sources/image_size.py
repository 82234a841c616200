"""What an image file says its size is, read from its header before anything is decoded or allocated."""

from __future__ import annotations

import struct
from collections.abc import Iterator

PNG, JPEG, BMP, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", (b"II*\0", b"MM\0*")
Size = tuple[int, int]

# TIFF tags; the size of a strip or tile buffer follows from the last two.
WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH = 256, 257, 322, 323
FIELD = {3: "H", 4: "I"}  # TIFF's SHORT and LONG, which is what these tags may be


def declared_size(data: bytes) -> Size | None:
    """Width and height in pixels as the file's header has them, None where it has none that can be read.

    Of a tiled TIFF the larger of image and tile, as a decoder has to hold either.
    """
    try:
        if data.startswith(PNG):
            return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" else None
        if data.startswith(JPEG):
            return _jpeg(data)
        if data.startswith(BMP):
            return _bmp(data)
        if data.startswith(TIFF):
            return _tiff(data)
    except struct.error:
        pass
    return None


def _jpeg(data: bytes) -> Size | None:
    """From the start of frame, before which only whole segments may come."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == 0xFFFF:  # a fill byte
            at += 1
        elif 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        elif marker <= 0xFF01 or 0xFFD0 <= marker <= 0xFFDA:
            return None
        else:
            at += 2 + length


def _bmp(data: bytes) -> Size:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2
        width, height = struct.unpack_from("<HH", data, 18)
        return width, height
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height: from the top down


def _tiff(data: bytes) -> Size | None:
    """Of the first page. A tag that comes twice, or as another type, is left to nobody's guess: None."""
    found: dict[int, int] = {}
    for tag, value in _tiff_sizes(data):
        if tag in found or value is None:
            return None
        found[tag] = value
    if WIDTH not in found or LENGTH not in found:
        return None
    return max(found[WIDTH], found.get(TILE_WIDTH, 0)), max(found[LENGTH], found.get(TILE_LENGTH, 0))


def _tiff_sizes(data: bytes) -> Iterator[tuple[int, int | None]]:
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    for number in range(count):
        entry = at + 2 + 12 * number
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        if tag in (WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH):
            known = kind in FIELD and values == 1
            yield tag, struct.unpack_from(order + FIELD[kind], data, entry + 8)[0] if known else None
