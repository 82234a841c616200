"""Changes to image files that keep their containers whole: checksums, lengths and offsets still fit."""

from __future__ import annotations

import random
import struct
import zlib

from tests.fuzz.mutate import flipped

SIZES = (0, 1, 2, 7, 255, 4096, 30_000, 65_535, 65_536, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE)
BMP_FIELDS = ((10, 4), (14, 4), (18, 4), (22, 4), (28, 2), (30, 4), (46, 4))  # offset and bytes
TIFF_TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 339, 347)
EXTRA = (b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"PLTE", b"sBIT", b"IEND")


def png(data: bytes, rng: random.Random) -> bytes:
    chunks = _png_chunks(data)
    if not chunks or rng.random() < 0.2:
        return flipped(data, rng)
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    match rng.randrange(6):
        case 0:
            chunks.insert(at, (rng.choice(EXTRA), rng.randbytes(rng.choice((0, 4, 8, 26, 100)))))
        case 1:
            chunks.insert(at, chunks[at])
        case 2:
            del chunks[at]
        case 3 if kind == b"IHDR" and len(body) == 13:
            width, height, *rest = struct.unpack(">II5B", body)
            width, height = (rng.choice((width, height, rng.choice(SIZES))) for _ in "wh")
            rest[rng.randrange(5)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16))
            chunks[at] = kind, struct.pack(">II5B", width, height, *rest)
        case 4 if kind == b"IDAT":
            chunks[at] = kind, _recompressed(body, rng)
        case _:
            chunks[at] = kind, flipped(body, rng)
    return SIGNATURE + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while data.startswith(SIGNATURE) and at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _recompressed(body: bytes, rng: random.Random) -> bytes:
    """Other lines than the header tells of: too few, too many, with filters that are none."""
    try:
        raw = zlib.decompressobj().decompress(body, 1 << 20)
    except zlib.error:
        raw = b""
    return zlib.compress(flipped(raw, rng) + bytes(rng.choice((0, 0, 100_000))))


def jpeg(data: bytes, rng: random.Random) -> bytes:
    segments = _jpeg_segments(data)
    if not segments or rng.random() < 0.2:
        return flipped(data, rng)
    at = rng.randrange(len(segments))
    marker, body = segments[at]
    is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6
    match rng.randrange(6):
        case 0:
            segments[at:at] = [segments[at]] * rng.choice((1, 2, 200))
        case 1:
            del segments[at]
        case 2:
            segments[at] = rng.choice(MARKERS), body
        case 3 | 4 if is_frame:
            size = struct.pack(">HH", *(rng.choice(SIZES) & 0xFFFF for _ in "hw"))
            segments[at] = marker, body[:1] + size + body[5:]
        case _:
            segments[at] = marker, flipped(body, rng)
    return b"\xff\xd8" + b"".join(_jpeg_segment(*segment) for segment in segments) + b"\xff\xd9"


def _jpeg_segments(data: bytes) -> list[tuple[int, bytes]]:
    """Marker and body of each; the body of a scan takes all bytes up to the next marker."""
    found, at = [], 2
    while data.startswith(b"\xff\xd8") and at + 4 <= len(data) and data[at] == 0xFF:
        marker, size = struct.unpack_from(">xBH", data, at)
        end = at + 2 + size
        if marker == 0xDA:
            end = _end_of_scan(data, end)
        found.append((marker, data[at + 4 : end]))
        at = end
    return found


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the next marker is; 0 is a stuffed byte, D0 to D7 are restarts inside the scan."""
    while at + 1 < len(data) and (data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8))):
        at += 1
    return at


def _jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, min(65_535, _head(marker, body) + 2)) + body


def _head(marker: int, body: bytes) -> int:
    """Bytes of the segment itself, which in a scan are only its first."""
    return 4 + 2 * (body[0] if body else 0) if marker == 0xDA else len(body)


def bmp(data: bytes, rng: random.Random) -> bytes:
    if len(data) < 54 or rng.random() < 0.3:
        return flipped(data, rng)
    changed = bytearray(data)
    at, size = rng.choice(BMP_FIELDS)
    value = rng.choice((*SIZES, -1, -8, 1, 4, 8, 12, 16, 24, 32, 40, 108, 124))
    changed[at : at + size] = (value % 256**size).to_bytes(size, "little")
    changed[2:6] = len(changed).to_bytes(4, "little")
    return bytes(changed)


def tiff(data: bytes, rng: random.Random) -> bytes:
    """Another tag, type, count or value in an entry of the first directory."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        entry = at + 2 + 12 * rng.randrange(max(1, min(count, 40)))
        fields = list(struct.unpack_from(order + "HHII", data, entry))
    except struct.error:
        return flipped(data, rng)
    if rng.random() < 0.3:
        return flipped(data, rng)
    which = rng.choice((0, 1, 2, 3, 3))
    values = (*SIZES, 3, 4, 5, 6, 8, 16, 24, 32, 64, 7, 34712, 50000, len(data) - 1)
    fields[which] = rng.choice((TIFF_TAGS, range(20), values, values)[which])
    changed = bytearray(data)
    struct.pack_into(order + "HHII", changed, entry, *fields)
    return bytes(changed)
