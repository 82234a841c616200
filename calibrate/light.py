"""Every frame brought to the brightness and contrast of the good frames, inside the graph.

A lamp that ages, a cover that gathers dust and another exposure change a whole frame alike: the mean of its
grey levels, their spread, and a little the colours' shares. These are brought back to those of the good
frames, as far as good frames differ in them less than light makes them differ (Wiener 1949: the share of the
variance that is light's), and by no more than light does: a dark frame stays dark, and so strange.

Two numbers bring back two greys, so a part that is all over darker before a background that is as it was
would be brought back, too. But light changes all of a frame: no more is made good than a few times what the
middle one of the frame's greys, sorted, has changed by. So such a part is told where it covers less than half
of the frame and what is around it is neither nearly black nor white. Measured: docs/research-log.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.region import FILL, Mask
from calibrate.tiles import Doubles, Geometry
from inspectord.frame import Pixels
from inspectord.inspect import Floats, compile_model

FRAMES = 64  # good frames that teach, at most
SIDE = 256  # of larger frames means of blocks are counted, at least so many in each direction
# What light does, one standard deviation: to brightness and contrast, to a colour beside the others; as a
# share, and to means in grey levels besides.
DRIFT, TINT = (0.05, 3.0), (0.02, 1.0)
MOST = 3  # times that are made good
LEAST = 4.0  # grey levels; of less spread, which is noise or one defect's, and of less light nothing is told
SEEN = 0.999  # of a block, or it is not counted
GREYS = 32  # blocks in each direction, at least, whose means, sorted, tell how much of the frame has changed
BLACK, WHITE = 16.0, 250.0  # grey levels; darker blocks hardly change by light, brighter ones are clipped
SHOWN = 3.0  # times what the middle of these has changed by is made good, at most; all in drifts
EVENED = "evened"  # name in the graph
RELIT = "relight_brightness", "relight_colour", "relight_contrast"  # how much is made good


@dataclass(frozen=True)
class Light:
    """What good frames have, in grey levels, and how much of a difference is made good, 0 to 1.

    greys: means of blocks of a frame, sorted, upwards.

    Frames that are later held out teach it, too: five numbers of at most FRAMES frames.
    """

    mean: Floats  # (channels,) red, green, blue
    spread: float  # mean distance from the mean, over all channels
    greys: Floats  # (blocks,)
    of_brightness: float
    of_colour: float
    of_contrast: float

    @classmethod
    def learn(cls, frames: Iterable[Pixels], measure: ov.Model, threads: int = 0) -> Light:
        """From good frames, (height, width, channels) each, as a graph of measured() sees them."""
        compiled = compile_model(measure, "CPU", "f32", threads)
        found = [[np.ravel(value) for value in compiled([frame[None]]).values()] for frame in frames]
        means = np.array([mean for mean, _, _ in found], np.float64)
        contrast = np.log([float(spread[0]) for _, spread, _ in found])
        mean = means.mean(0)
        lacking = mean - means
        overall = lacking.mean(1)
        colour = lacking - overall[:, None] * mean / max(mean.mean(), LEAST)
        return cls(
            mean=mean.astype(np.float32),
            spread=float(np.exp(contrast.mean())),
            greys=np.array([greys for _, _, greys in found]).mean(0),
            of_brightness=_share(_drift(mean.mean(), DRIFT), overall),
            of_colour=_share(_drift(mean.mean(), TINT), colour),
            of_contrast=_share(DRIFT[0], contrast - contrast.mean()),
        )

    def even(self, planes: ov.Output, seen: Floats | None) -> ov.Output:
        """planes (1, channels, height, width), 0 to 255, as the light of the good frames shows them. What
        is ignored stays as it is; seen: see seen_share.
        """
        mean, spread, greys = measured(planes, seen)
        most = self._most(greys)
        brightness = float(self.mean.mean())
        proportions = _of_channels(self.mean / max(brightness, LEAST))
        lacking = op.subtract(_of_channels(self.mean), mean)
        overall = op.reduce_mean(lacking, op.constant([1]), True)
        colour = op.subtract(lacking, op.multiply(overall, proportions))
        move = op.add(
            op.multiply(_share_of(overall, self.of_brightness, _drift(brightness, DRIFT), most), proportions),
            _share_of(colour, self.of_colour, _drift(brightness, TINT), _of_channels(np.array([MOST]))),
        )
        ratio = op.divide(op.constant(np.float32(self.spread)), spread)
        gain = op.exp(_share_of(op.log(ratio), self.of_contrast, DRIFT[0], most))
        moved = op.add(op.subtract(mean, op.multiply(mean, gain)), move)
        # One a channel, side by side and parted again: else OpenVINO computes them anew for every pixel.
        gains = op.multiply(gain, _of_channels(np.ones_like(self.mean)))
        both = op.split(op.concat([gains, moved], 0), op.constant(0), 2)
        gains, moved = both.outputs()
        if seen is not None:
            kept = op.multiply(op.subtract(op.constant(np.float32(1)), gains), op.constant(FILL * (1 - seen)))
            moved = op.add(op.multiply(moved, op.constant(seen)), kept).output(0)
        evened = op.clamp(op.add(op.multiply(planes, gains), moved), 0.0, 255.0).output(0)
        evened.get_tensor().set_names({EVENED})
        return evened

    def _most(self, greys: ov.Output) -> ov.Output:
        """How many drifts are made good in a frame of such greys, (1, 1, 1, 1)."""
        told = np.flatnonzero((self.greys > BLACK) & (self.greys < WHITE))
        if not len(told):
            return _of_channels(np.array([MOST]))
        changed = op.abs(op.subtract(greys, op.constant(self.greys)))
        drifts = op.divide(changed, op.constant(np.float32(DRIFT[0]) * self.greys))
        half = (len(told) + 1) // 2
        lower = op.topk(op.gather(drifts, op.constant(told), op.constant(0)), half, 0, "min", "value")
        middle = op.reduce_max(lower.output(0), op.constant([0]))
        most = op.minimum(op.multiply(middle, op.constant(np.float32(SHOWN))), op.constant(np.float32(MOST)))
        return op.reshape(most, op.constant([1, 1, 1, 1]), False).output(0)

    @property
    def parameters(self) -> dict[str, float]:
        """For recipe.toml."""
        shares = self.of_brightness, self.of_colour, self.of_contrast
        return {name: round(share, 3) for name, share in zip(RELIT, shares, strict=True)}


def measured(planes: ov.Output, seen: Floats | None) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Of the pixels of planes (1, channels, height, width), in grey levels: their means, (1, channels, 1, 1);
    the mean distance from these over all channels, (1, 1, 1, 1); means of blocks over all channels, sorted,
    (blocks,). seen: see seen_share.
    """
    blocks, whole = _in_blocks(planes, seen, SIDE)
    weights = None if whole is None else whole / whole.mean()
    mean = _mean(blocks, weights)
    apart = _mean(op.abs(op.subtract(blocks, mean)).output(0), weights)
    spread = op.reduce_mean(apart, op.constant([1]), True)
    blocks, whole = _in_blocks(planes, seen, GREYS)
    greys = op.reshape(op.reduce_mean(blocks, op.constant([1])), op.constant([-1]), False)
    if whole is not None:
        greys = op.gather(greys, op.constant(np.flatnonzero(whole)), op.constant(0))
    greys = op.topk(greys, greys.output(0).get_shape()[0], 0, "min", "value").output(0)
    return mean, op.maximum(spread, op.constant(np.float32(LEAST))).output(0), greys


def seen_share(geometry: Geometry, ignored: Mask | None) -> Floats | None:
    """What share of each pixel of the scaled region is not ignored, (1, 1, rows, columns); None: of all 1."""
    x, y, width, height = geometry.roi
    if ignored is None or not ignored[y : y + height, x : x + width].any():
        return None
    seen = (~ignored[y : y + height, x : x + width]).astype(np.float32)
    size = geometry.columns.length, geometry.rows.length
    how = cv2.INTER_AREA if geometry.scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(seen, size, interpolation=how), np.float32)[None, None]


def _in_blocks(planes: ov.Output, seen: Floats | None, side: int) -> tuple[ov.Output, Floats | None]:
    """Means of blocks, at least side of them in each direction, and how much each counts: what is ignored to
    more than a little counts nothing, where there are others. None: all count alike.
    """
    step = [max(1, pixels // side) for pixels in planes.get_shape()[2:]]
    if max(step) > 1:
        planes = op.avg_pool(planes, step, [0, 0], [0, 0], step, True).output(0)
    if seen is None:
        return planes, None
    rows, columns = (pixels // size for pixels, size in zip(seen.shape[2:], step, strict=True))
    whole = seen[0, 0, : rows * step[0], : columns * step[1]]
    whole = whole.reshape(rows, step[0], columns, step[1]).mean((1, 3))
    return planes, np.where((whole > SEEN) | ~(whole > SEEN).any(), whole, 0)[None, None]


def _drift(mean: float, light: tuple[float, float]) -> float:
    """What light does to such a mean, one standard deviation in grey levels."""
    return float(np.hypot(light[0] * mean, light[1]))


def _share(drift: float, differences: Doubles) -> float:
    """What of good frames' differences from their mean, (frames, ...), light would account for."""
    variance = float((differences**2).sum(0).mean()) / max(len(differences) - 1, 1)
    return drift**2 / (drift**2 + variance)


def _share_of(difference: ov.Output, share: float, drift: float, most: ov.Output) -> ov.Output:
    """A share of a difference, at most so many drifts of it."""
    wanted = op.multiply(difference, op.constant(np.float32(share)))
    bound = op.multiply(most, op.constant(np.float32(drift)))
    return op.minimum(op.maximum(wanted, op.negative(bound)), bound).output(0)


def _mean(planes: ov.Output, weights: Floats | None) -> ov.Output:
    if weights is not None:
        planes = op.multiply(planes, op.constant(weights)).output(0)
    return op.reduce_mean(planes, op.constant([2, 3]), True).output(0)


def _of_channels(values: npt.ArrayLike) -> ov.Output:
    return op.constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1)).output(0)
