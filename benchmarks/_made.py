"""What benchmarks that write a data set have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from inspectord.errors import InspectordError, SourceError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def absent(out: Path) -> None:
    """Raises SourceError where a folder that is to be written is there."""
    if out.exists():
        raise SourceError(f"{out} exists; give another folder")


def write(path: Path, planes: Tensor) -> None:
    """An image of float planes (channels, height, width), 0 to 255; SourceError where it can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels: np.ndarray = planes.permute(1, 2, 0).round().byte().numpy()
    if not cv2.imwrite(str(path), pixels):
        raise SourceError(f"{path} can't be written; is the disk full?")


def told(name: str, make: Callable[[], str]) -> int:
    """Make a set and print what it says of it: 0, or 65 and one line of what is wrong."""
    try:
        print(make())
    except (InspectordError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 65
    return 0
