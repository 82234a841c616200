"""Good frames with made-up defects, as the recipe's graph sees them, and where they were struck."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from calibrate.candidates import counting
from calibrate.folds import Indices
from calibrate.graph import tile_model
from calibrate.pretrain import defects
from inspectord.frame import Pixels
from inspectord.inspect import compile_model

if TYPE_CHECKING:
    from calibrate.plan import Plan

# Of a larger region so much, somewhere, is struck: defects keep their size, and drawing them its time.
WINDOW_PX = 512
AT_ONCE = 6 * WINDOW_PX**2  # pixels of windows that are struck together: it takes eleven times their floats
GROSS_SIDES = (1 / 16, 1 / 3)  # of the window's


class Strikes:
    """Draws them from a plan's samples. counting (positions,) are those whose cell counts in the map."""

    def __init__(self, plan: Plan) -> None:
        options = plan.options
        self._plan, self.counting = plan, torch.from_numpy(counting(plan))
        model = compile_model(plan.graph, options.device, plan.hint, options.threads)
        self._features = model.create_infer_request()
        cut = tile_model(plan.frame, plan.geometry, None)
        self._cut = compile_model(cut, "CPU", "f32", options.threads).create_infer_request()
        self._valid = ~plan.region.ignored

    def draw(
        self,
        samples: Indices,
        sources: Indices,
        rng: np.random.Generator,
        families: Sequence[str],
        amounts: Sequence[float],
        gross: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (n, positions, d) of samples, each struck with a share of a defect; and what share of
        every position's cell is struck, (n, positions).

        Content may come from the sources, as many. A share `gross` of them are rectangles half the grey scale
        off instead. The same generator draws the same.
        """
        each = together(self._plan.region.roi)
        found = [
            self._drawn(samples[some], sources[some], amounts[some], rng, families, gross)
            for some in (slice(first, first + each) for first in range(0, len(samples), each))
        ]
        embeddings, covers = zip(*found, strict=True)
        return torch.cat(embeddings), torch.cat(covers)

    def _drawn(
        self,
        samples: Indices,
        sources: Indices,
        amounts: Sequence[float],
        rng: np.random.Generator,
        families: Sequence[str],
        gross: float,
    ) -> tuple[Tensor, Tensor]:
        frames = [self._plan.sample(number) for number in samples.tolist()]
        windows = [_window(self._plan.region.roi, rng) for _ in frames]
        good = torch.cat([_planes(frame[at]) for frame, at in zip(frames, windows, strict=True)])
        others = torch.cat(
            [
                _planes(self._plan.sample(number)[at])
                for number, at in zip(sources.tolist(), windows, strict=True)
            ]
        )
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        struck, masks = defects.strike(good, others, generator, families)
        for number in np.flatnonzero(rng.random(len(good)) < gross).tolist():
            _paint(good[number], struck[number], masks[number], rng)
        share = torch.tensor(amounts)[:, None, None, None]
        changed = (good + share * (struck - good)).round().clamp(0, 255).to(torch.uint8)
        found = [
            self._seen(*_pasted(frame, at, after, mask))
            for frame, at, after, mask in zip(
                frames, windows, changed.numpy(), (masks & (share > 0)).numpy(), strict=True
            )
        ]
        embeddings, covers = zip(*found, strict=True)
        return torch.stack(embeddings), torch.stack(covers)

    def _seen(self, frame: Pixels, mask: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        self._features.infer([frame[None]])
        embeddings = torch.from_numpy(self._features.get_output_tensor(0).data.copy())
        shown = np.repeat((mask & self._valid)[..., None], frame.shape[2], 2).astype(np.uint8) * 255
        self._cut.infer([shown[None]])
        tiles = torch.from_numpy(self._cut.get_output_tensor(0).data)[:, :1]
        return embeddings, functional.avg_pool2d(tiles, self._plan.geometry.cell).flatten() / 255


def together(roi: tuple[int, int, int, int]) -> int:
    """Frames that are struck at once, of a region x, y, width, height."""
    return AT_ONCE // window_pixels(roi)


def window_pixels(roi: tuple[int, int, int, int]) -> int:
    return math.prod(min(side, WINDOW_PX) for side in roi[2:])


def _window(roi: tuple[int, int, int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns somewhere within the region x, y, width, height."""
    x, y, width, height = roi
    starts = [
        first + int(rng.integers(max(0, side - WINDOW_PX) + 1)) for first, side in ((y, height), (x, width))
    ]
    rows, columns = (
        slice(start, start + min(side, WINDOW_PX))
        for start, side in zip(starts, (height, width), strict=True)
    )
    return rows, columns


def _paint(good: Tensor, struck: Tensor, mask: Tensor, rng: np.random.Generator) -> None:
    """A rectangle of the good planes, half the grey scale off, in the place of the defect."""
    sides = [max(1, int(side * np.exp(rng.uniform(*np.log(GROSS_SIDES))))) for side in good.shape[1:]]
    starts = [int(rng.integers(whole - side + 1)) for whole, side in zip(good.shape[1:], sides, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    struck.copy_(good)
    struck[:, rows, columns] = (good[:, rows, columns] + 128) % 256
    mask.zero_()
    mask[:, rows, columns] = True


def _planes(pixels: Pixels) -> Tensor:
    """(1, 3, height, width), 0..255."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    return planes.expand(-1, 3, -1, -1)


def _pasted(
    frame: Pixels, at: tuple[slice, slice], after: Pixels, mask: npt.NDArray[np.bool_]
) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """The whole frame and its mask, with what the window holds afterwards."""
    whole, where = frame.copy(), np.zeros(frame.shape[:2], np.bool_)
    whole[at] = after.transpose(1, 2, 0)[..., : frame.shape[2]]
    where[at] = mask[0]
    return whole, where
