"""Image files, read strictly: what is not plainly 8-bit grey or colour is refused, never converted."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np

from inspectord.errors import FrameError, SourceError
from inspectord.frame import MOST_PIXELS, Pixels
from inspectord.sources.image_size import JPEG, PNG, declared_size

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
LARGEST_BYTES = 1 << 30
MOST_SCANS = 100  # of a progressive JPEG, each a pass over the whole image; encoders write about ten


class ImageKindError(FrameError):
    """The file is sound, but its depth or channels are not what a recipe can have."""


def list_images(folder: Path) -> list[Path]:
    """All image files below folder, in natural name order (2.png before 10.png).

    Raises SourceError for a folder that is missing, unreadable or without images.
    """
    if folder.is_file():
        raise SourceError(f"{folder} is a file; give the folder that holds the images")
    if not folder.is_dir():
        raise SourceError(f"no folder {folder}; give a folder with {_named(SUFFIXES)} files")
    try:
        found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    except OSError as error:
        raise SourceError(f"can't list {folder}: {error.strerror}; check its permissions") from error
    if not found:
        raise SourceError(f"no images in {folder}; it needs {_named(SUFFIXES)} files")
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sorting key that reads digits as numbers; the name itself decides between 1.png and 01.png."""
    parts = re.split(r"(\d+)", name.casefold())
    # Not isdigit(): it takes in superscripts, which int() does not.
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], name


def read_image(path: Path) -> Pixels:
    """The file's pixels, uint8 of shape (height, width, channels): 1 channel grey, 3 channels BGR.

    Raises FrameError for a file that is unreadable, damaged or cut short, or says it has over MOST_PIXELS,
    and its kind ImageKindError for more than 8 bits, a palette or real transparency.
    """
    data = _bytes_of(path)
    _check_header(data, path)
    end = _png_end(data) if data.startswith(PNG) else None
    try:
        image = cv2.imdecode(np.frombuffer(data[:end], np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise FrameError(f"{path} is no image that can be decoded; remove it or copy it again")
    return _plain(np.asarray(image), path)


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise FrameError(
            f"can't read {path}: {error.strerror}; check the file and its permissions"
        ) from error
    if len(data) > LARGEST_BYTES:
        raise FrameError(f"{path} is larger than {LARGEST_BYTES >> 20} MB; remove it")
    return data


def _check_header(data: bytes, path: Path) -> None:
    """Raises FrameError for what must not be decoded: a small file may ask for any amount of memory."""
    if _is_cut(data):
        raise FrameError(f"{path} is cut short ({len(data)} bytes); copy it again from where it was made")
    size = declared_size(data)
    if size is None:
        raise FrameError(f"{path} is no image that can be decoded; remove it or copy it again")
    if size[0] * size[1] > MOST_PIXELS:
        raise FrameError(
            f"{path} says it has {size[0]}x{size[1]} pixels, over {MOST_PIXELS // 1_000_000} million; "
            "cut it into smaller ones"
        )
    if data.startswith(PNG) and data[25:26] == b"\x03":
        raise ImageKindError(f"{path} has a palette; convert it to plain grey or RGB first")
    if data.startswith(JPEG) and data.count(b"\xff\xda") > MOST_SCANS:
        raise FrameError(f"{path} has over {MOST_SCANS} scans; save it as an ordinary JPEG")


def _plain(image: np.ndarray, path: Path) -> Pixels:
    if image.dtype != np.uint8:
        bits = 8 * image.dtype.itemsize
        raise ImageKindError(f"{path} has {bits} bits a channel; convert to 8 bit first")
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
    if image.shape[2] == 4 and (image[:, :, 3] == 255).all():
        image = np.ascontiguousarray(image[:, :, :3])
    if image.shape[2] not in (1, 3):
        raise ImageKindError(
            f"{path} has {image.shape[2]} channels or is transparent; convert it to plain grey or RGB first"
        )
    return image


def _is_cut(data: bytes) -> bool:
    """True where the end is missing: OpenCV fills the rest of such a PNG or JPEG with grey, silently."""
    if data.startswith(PNG):
        return _png_end(data) is None
    if data.startswith(b"\xff\xd8"):
        # A thumbnail has its own end mark, but the image's scan starts after it.
        return data.rfind(b"\xff\xd9") < max(data.rfind(b"\xff\xda"), 2)
    if data.startswith(b"BM") and len(data) >= 14:
        return len(data) < int.from_bytes(data[2:6], "little")
    return False


def _png_end(data: bytes) -> int | None:
    """Where the last chunk ends; None where one reaches beyond the file.

    OpenCV allocates what a chunk claims to hold before it reads it: up to 4 GB for a file of 69 bytes, also
    for a chunk behind the last.
    """
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + size
        if kind == b"IEND":
            return at if at <= len(data) else None
    return None


def _named(suffixes: set[str]) -> str:
    return ", ".join(sorted(suffixes))
