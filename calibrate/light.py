"""Every frame brought to the brightness and contrast of the good frames, inside the graph.

A lamp that ages, a cover that gathers dust and another exposure change a whole frame alike: the mean of its
grey levels, their spread, and a little the colours' shares. These are brought back to those of the good
frames, as far as good frames differ in them less than light makes them differ (Wiener 1949: the share of the
variance that is light's), and by no more than light does: a dark frame stays dark, and so strange.

What a defect does to the mean of the whole frame goes with it: a part that fills the frame and is a few per
cent darker all over passes. Measured: docs/research-log.md.
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
# What light does, one standard deviation: to brightness and contrast, to a colour beside the others; as a
# share, and of means in grey levels besides.
DRIFT, TINT = (0.05, 3.0), (0.02, 1.0)
MOST = 3  # times that are made good
LEAST = 1.0  # grey levels; a smaller spread is noise, and counts as this
UNIT = 64.0  # grey levels; squares of these stay far from the largest half-precision number
RELIT = "relight_brightness", "relight_colour", "relight_contrast"  # how much is made good


@dataclass(frozen=True)
class Light:
    """What good frames have, in grey levels, and how much of a difference is made good, 0 to 1."""

    mean: Floats  # (channels,) red, green, blue
    spread: float  # of all channels
    of_brightness: float
    of_colour: float
    of_contrast: float

    @classmethod
    def learn(cls, frames: Iterable[Pixels], measure: ov.Model) -> Light:
        """From good frames, (height, width, channels) each, as a graph of measured() sees them."""
        compiled = ov.Core().compile_model(measure, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = [[np.ravel(value) for value in compiled([frame[None]]).values()] for frame in frames]
        means = np.array([mean for mean, _ in found], np.float64)
        contrast = np.log([float(spread[0]) for _, spread in found])
        mean = means.mean(0)
        lacking = mean - means
        overall = lacking.mean(1)
        colour = lacking - overall[:, None] * mean / max(mean.mean(), LEAST)
        return cls(
            mean=mean.astype(np.float32),
            spread=float(np.exp(contrast.mean())),
            of_brightness=_share(_drift(mean.mean(), DRIFT), overall),
            of_colour=_share(_drift(mean.mean(), TINT), colour),
            of_contrast=_share(DRIFT[0], contrast - contrast.mean()),
        )

    def even(self, planes: ov.Output, counted: Mask | None) -> ov.Output:
        """planes (1, channels, height, width) as the good frames' light would have shown them."""
        mean, spread = measured(planes, counted)
        brightness = float(self.mean.mean())
        proportions = _of_channels(self.mean / max(brightness, LEAST))
        lacking = op.subtract(_of_channels(self.mean), mean)
        overall = op.reduce_mean(lacking, op.constant([1]), True)
        colour = op.subtract(lacking, op.multiply(overall, proportions))
        move = op.add(
            op.multiply(_share_of(overall, self.of_brightness, _drift(brightness, DRIFT)), proportions),
            _share_of(colour, self.of_colour, _drift(brightness, TINT)),
        )
        ratio = op.divide(op.constant(np.float32(self.spread)), spread)
        gain = op.exp(_share_of(op.log(ratio), self.of_contrast, DRIFT[0]))
        moved = op.add(op.subtract(mean, op.multiply(mean, gain)), move)
        # Of one channel, and side by side: or OpenVINO would compute them again for every pixel.
        gains = op.multiply(gain, _of_channels(np.ones_like(self.mean)))
        both = op.split(op.concat([gains, moved], 0), op.constant(0), 2)
        return op.add(op.multiply(planes, both.output(0)), both.output(1)).output(0)

    @property
    def parameters(self) -> dict[str, float]:
        """For recipe.toml."""
        shares = self.of_brightness, self.of_colour, self.of_contrast
        return {name: round(share, 3) for name, share in zip(RELIT, shares, strict=True)}


def measured(planes: ov.Output, counted: Mask | None) -> tuple[ov.Output, ov.Output]:
    """Means of the pixels of planes (1, channels, height, width), of shape (1, channels, 1, 1), and their
    spread over all channels, (1, 1, 1, 1), in grey levels; counted (height, width), None: all.
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
    variance = op.reduce_mean(_mean(op.multiply(apart, apart).output(0), weights), op.constant([1]), True)
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


def _drift(mean: float, light: tuple[float, float]) -> float:
    """What light does to such a mean, one standard deviation in grey levels."""
    return float(np.hypot(light[0] * mean, light[1]))


def _share(drift: float, differences: Doubles) -> float:
    """What of good frames' differences from their mean, (frames, ...), light would account for."""
    variance = float((differences**2).sum(0).mean()) / max(len(differences) - 1, 1)
    return drift**2 / (drift**2 + variance)


def _share_of(difference: ov.Output, share: float, drift: float) -> ov.Output:
    """A share of a difference, bounded."""
    wanted = op.multiply(difference, op.constant(np.float32(share)))
    return op.clamp(wanted, -MOST * drift, MOST * drift).output(0)


def _mean(planes: ov.Output, weights: Floats | None) -> ov.Output:
    axes = op.constant([2, 3])
    if weights is None:
        return op.reduce_mean(planes, axes, True).output(0)
    return op.reduce_sum(op.multiply(planes, op.constant(weights)), axes, True).output(0)


def _of_channels(values: Floats) -> ov.Output:
    return op.constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1)).output(0)
