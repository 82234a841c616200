"""Folders of simulated good parts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2

from inspectord.sources.parts import render_part


def write_parts(
    folder: Path, numbers: Iterable[int], width: int = 96, height: int = 80, seed: int = 1
) -> Path:
    """Good parts of these numbers as 000.png and so on; the folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / f"{number:03d}.png"), render_part(seed, number, width, height, 0.0).pixels)
    return folder
