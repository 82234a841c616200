"""Draws docs/pretraining.png: scenes that backbones are pre-trained on, and defects that they never see."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calibrate.pretrain import defects, scenes

_DRAWN, _SHOWN, _GAP, _LABEL, _HEAD, _ACROSS = 128, 96, 2, 82, 26, 6  # pixels, pictures in a row
_ROW = _SHOWN + _GAP
_COLUMN = _LABEL + _ACROSS * _ROW + 12
_COLOURS = 160  # a palette keeps the file near a megabyte: the grain of these pictures does not compress


def scene_row(family: str) -> Tensor:
    """Two good frames of each of three parts, float32 (6, 3, 128, 128)."""
    return scenes.render(family, torch.arange(5, 8), 2, _DRAWN).flatten(0, 1)


def defect_row(family: str, number: int) -> Tensor:
    """Good frame, struck frame and mask, of two parts, float32 (6, 3, 128, 128)."""
    every = scenes.FAMILIES
    names = [every[(number * 5 + 7 * k) % len(every)] for k in range(2)]
    good = torch.cat([scenes.render(name, torch.tensor([number]), 1, _DRAWN)[:, 0] for name in names])
    struck, mask = defects.strike(good, good.flip(0), torch.Generator().manual_seed(number), [family])
    return torch.stack([good, struck, mask.expand_as(good) * 255.0], dim=1).flatten(0, 1)


def _strip(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures side by side, reduced to what is shown, uint8 (rows, columns, 3)."""
    small = torch.nn.functional.interpolate(pictures, (_SHOWN, _SHOWN), mode="area")
    padded = torch.nn.functional.pad(small, (0, _GAP, 0, 0), value=255.0)
    strip: NDArray[np.uint8] = padded.permute(2, 0, 3, 1).flatten(1, 2).round().to(torch.uint8).numpy()
    return strip


def _draw(columns: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]]) -> bytes:
    """The sheet as PNG; a column is its title and its labelled rows."""
    rows = max(len(column) for _, column in columns)
    wide, tall = len(columns) * _COLUMN, _HEAD + rows * _ROW
    figure = Figure(figsize=(wide / 100, tall / 100), dpi=100)
    FigureCanvasAgg(figure)
    for number, (title, column) in enumerate(columns):
        left = number * _COLUMN
        figure.text((left + _LABEL) / wide, 1 - 6 / tall, title, va="top", size=9, weight="bold")
        for place, (label, pictures) in enumerate(column):
            low = tall - _HEAD - (place + 1) * _ROW
            figure.figimage(_strip(pictures), left + _LABEL, low)
            figure.text(
                (left + _LABEL - 6) / wide, (low + _ROW / 2) / tall, label, ha="right", va="center", size=8
            )
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    picture = Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    picture.save(packed, format="png", optimize=True)
    return packed.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet; the same code writes the same pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pretraining.png"))
    out: Path = parser.parse_args(arguments).out
    kept = [(f"{name}\n(held out)", scene_row(name)) for name in scenes.HELD_OUT]
    drawn = [(name, scene_row(name)) for name in scenes.FAMILIES]
    flaws = [*defects.FAMILIES, *defects.HELD_OUT]
    struck = [(name, defect_row(name, number)) for number, name in enumerate(flaws, start=1)]
    titles = "scenes: three parts, two good frames of each", "defects, for choosing only: good, struck, mask"
    out.write_bytes(_draw([(titles[0], drawn + kept), (titles[1], struck)]))


if __name__ == "__main__":
    main()
