"""Every frame brought to the brightness and contrast of the good frames, inside the graph.

A lamp that ages, a cover that gathers dust and another exposure change a whole frame alike: the mean of its
grey levels and their spread, of each colour. Both are brought back to those of the good frames, as far as
good frames differ in them less than light makes them differ (Wiener 1949: the share of the variance that is
light's), and by no more than light does: a dark frame stays dark, and so strange.

A defect that covers much of a part and is darker or brighter loses by that what it changes of the mean.
Measured: docs/research-log.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.region import Mask
from calibrate.tiles import Doubles, Geometry
from inspectord.frame import Pixels
from inspectord.inspect import Floats

FRAMES = 64  # good frames that teach, at most
SIDE = 256  # pixels that are counted in each direction, at most
# What light does, one standard deviation: to a spread and a mean, of it; to a mean besides, in grey levels.
DRIFT, OFFSET = 0.05, 3.0
MOST = 4  # times that are made good
LEAST = 1.0  # grey levels; a smaller spread is noise, and counts as this
RELIT = "relight_brightness", "relight_contrast"  # how much is made good, of the mean and of the spread
UNIT = 64.0  # grey levels; squares of these stay far from the largest half-precision number


@dataclass(frozen=True)
class Light:
    """What good frames have, in grey levels of each channel (red, green, blue), and how much of a
    difference is made good, 0 to 1; all float32 (channels,).
    """

    mean: Floats
    spread: Floats
    of_mean: Floats
    of_spread: Floats

    @classmethod
    def learn(cls, frames: Iterable[Pixels], measure: ov.Model) -> Light:
        """From good frames, (height, width, channels) each, as a graph of measured() sees them."""
        request = ov.Core().compile_model(measure, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = np.array([[value.ravel() for value in request([frame[None]]).values()] for frame in frames])
        means, spreads = found[:, 0].astype(np.float64), np.log(found[:, 1].astype(np.float64))
        mean = means.mean(0)
        return cls(
            *(
                np.asarray(each, np.float32)
                for each in (
                    mean,
                    np.exp(spreads.mean(0)),
                    _share(drift_of(mean), means),
                    _share(np.full_like(mean, DRIFT), spreads),
                )
            )
        )

    def even(self, planes: ov.Output, counted: Mask | None) -> ov.Output:
        """planes (1, channels, height, width) as the good frames' light would have shown them."""
        mean, spread = measured(planes, counted)
        most = MOST * drift_of(self.mean)
        lacking = op.multiply(op.subtract(_of_channels(self.mean), mean), _of_channels(self.of_mean))
        move = op.minimum(op.maximum(lacking, _of_channels(-most)), _of_channels(most))
        ratio = op.power(op.divide(_of_channels(self.spread), spread), _of_channels(self.of_spread))
        gain = op.clamp(ratio, float(np.exp(-MOST * DRIFT)), float(np.exp(MOST * DRIFT)))
        moved = op.add(mean, op.subtract(move, op.multiply(mean, gain)))
        # Side by side, or OpenVINO would compute them again for every pixel.
        both = op.split(op.concat([gain, moved], 0), op.constant(0), 2)
        return op.add(op.multiply(planes, both.output(0)), both.output(1)).output(0)

    @property
    def parameters(self) -> dict[str, float]:
        """For recipe.toml, means over the channels."""
        shares = (round(float(each.mean()), 3) for each in (self.of_mean, self.of_spread))
        return dict(zip(RELIT, shares, strict=True))


def measured(planes: ov.Output, counted: Mask | None) -> tuple[ov.Output, ov.Output]:
    """Mean and spread of the pixels of planes (1, channels, height, width), in grey levels, each of shape
    (1, channels, 1, 1); counted (height, width), None: all.
    """
    height, width = planes.get_shape()[2:]
    step = max(1, -(-max(height, width) // SIDE))
    start, stop, steps = (op.constant([value] * 2) for value in (step // 2, max(height, width), step))
    seen = planes
    if step > 1:
        seen = op.slice(planes, start, stop, steps, op.constant([2, 3])).output(0)
    weights = None
    if counted is not None:
        weights = counted[step // 2 :: step, step // 2 :: step].astype(np.float32)
        weights /= max(float(weights.sum()), 1.0)
    mean = _mean(seen, weights)
    apart = op.multiply(op.subtract(seen, mean), op.constant(np.float32(1 / UNIT)))
    variance = _mean(op.multiply(apart, apart).output(0), weights)
    spread = op.multiply(op.sqrt(variance), op.constant(np.float32(UNIT)))
    return mean, op.maximum(spread, op.constant(np.float32(LEAST))).output(0)


def counted_pixels(geometry: Geometry, ignored: Mask | None) -> Mask | None:
    """Pixels of the scaled region that show none that is ignored, (rows, columns); None: all."""
    x, y, width, height = geometry.roi
    if ignored is None or not ignored[y : y + height, x : x + width].any():
        return None
    rows, columns = (
        np.minimum(((np.arange(axis.length) + 0.5) / geometry.scale).astype(int), side - 1)
        for axis, side in ((geometry.rows, height), (geometry.columns, width))
    )
    return np.asarray(~ignored[y : y + height, x : x + width][np.ix_(rows, columns)])


def drift_of(mean: Floats | Doubles) -> Floats:
    """What light does to these means, one standard deviation in grey levels."""
    return np.asarray(np.hypot(DRIFT * mean, OFFSET), np.float32)


def _share(drift: Floats | Doubles, values: Doubles) -> Doubles:
    """Of a difference from the mean over the frames, (frames, channels): what of it is light's."""
    return np.asarray(drift**2 / (drift**2 + values.var(0, ddof=1)))


def _mean(planes: ov.Output, weights: Floats | None) -> ov.Output:
    axes = op.constant([2, 3])
    if weights is None:
        return op.reduce_mean(planes, axes, True).output(0)
    return op.reduce_sum(op.multiply(planes, op.constant(weights)), axes, True).output(0)


def _of_channels(values: Floats) -> ov.Output:
    return op.constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1)).output(0)
