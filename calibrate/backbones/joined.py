"""The bundled networks' own layers: two stages side by side, and means of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.backbones.weights import kept
from inspectord.inspect import Floats

POOLED = "pooled"


@dataclass(frozen=True)
class Map:
    """Activations of shape (n, channels, rows, columns): values, times scale (channels,) where given.

    A scale means that values are quantised: whole multiples of 1 / 255 between 0 and 1.
    """

    values: ov.Output
    scale: Floats | None = None


def joined(stages: Sequence[Map], spread: Floats, channels: npt.NDArray[np.int64] | None) -> ov.Output:
    """The finer stage, averaged to the resolution of the coarser one, and that one, over their spread.

    spread (channels of both,); channels (None: all) are kept, the finer stage's first.
    """
    fine, coarse = stages
    halved = pooled(fine.values)
    first = halved.get_shape()[1]
    index = np.arange(len(spread)) if channels is None else channels
    mine = index[index < first], index[index >= first] - first
    parts = [
        kept(values, wanted, gain if scale is None else gain * scale)
        for values, scale, wanted, gain in zip(
            (halved, coarse.values),
            (fine.scale, coarse.scale),
            mine,
            np.split(np.float32(1) / spread, [first]),
            strict=True,
        )
        if len(wanted)
    ]
    return op.concat(parts, 1).output(0)


def own(
    layer: str, stages: Sequence[Map], spread: Floats, channels: npt.NDArray[np.int64] | None
) -> ov.Output:
    """The layer joined, or pooled: the means of its 2 x 2 cells."""
    both = joined(stages, spread, channels)
    return pooled(both) if layer == POOLED else both


def pooled(maps: ov.Output) -> ov.Output:
    """The means of 2 x 2 cells each."""
    return op.avg_pool(maps, [2, 2], [0, 0], [0, 0], [2, 2], False).output(0)
