"""Every frame brought to the brightness, contrast and slope of the good frames' light, inside the graph.

A lamp that ages, a cover that gathers dust and another exposure change a whole frame alike: the mean of its
grey levels, their spread, and a little the colours' shares. These are brought back to those of the good
frames, as far as good frames differ in them less than light makes them differ (Wiener 1949: the share of the
variance that is light's), and by no more than light does: a dark frame stays dark, and so strange. So is a
slope of the light, up or across the frame, told by how places differ from what they are in good frames,
places that differ there counting less (generalised least squares with the light's own spread as prior).

Two numbers bring back two greys, so a part that is all over darker before a background that is as it was
would be brought back, too. But light changes all of a frame: no more is made good than a few times what half
of it has changed by, at its places and, for parts that lie anyhow, in its sorted greys. So such a part is
told where it covers less than half of what is neither nearly black nor white. Measured: docs/research-log.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
SLOPE, NOISE = 0.03, 0.005  # what light does from the middle to a border, and to a block; shares, likewise
BLOCKS = 16  # in each direction, at least; of smaller frames the pixels
BLACK, WHITE = 16.0, 250.0  # grey levels; darker blocks hardly change by light, brighter ones are clipped
SHOWN = 3.0  # times what half of the blocks have changed by is made good, at most; all in standard deviations
EVENED = "evened"  # name in the graph
RELIT = "relight_brightness", "relight_colour", "relight_contrast"  # how much is made good


@dataclass(frozen=True)
class Light:
    """What good frames have, in grey levels, and how much of a difference is made good, 0 to 1.

    Frames that are later held out teach it, too: a few numbers of each of at most FRAMES frames.
    """

    mean: Floats  # (channels,) red, green, blue
    spread: float  # mean distance from the mean, over all channels
    places: Floats  # (channels, blocks) means of the blocks that are looked at
    greys: Floats  # (channels, blocks) of each frame's blocks, sorted
    slopes: Floats  # (2, blocks) what makes slopes down and across of the blocks' differences, as shares
    of_brightness: float
    of_colour: float
    of_contrast: float

    @classmethod
    def learn(
        cls, frames: Iterable[Pixels], measure: ov.Model, seen: Floats | None = None, threads: int = 0
    ) -> Light:
        """From good frames, (height, width, channels) each, as a graph of measured() sees them."""
        compiled = compile_model(measure, "CPU", "f32", threads)
        found = [list(compiled([frame[None]]).values()) for frame in frames]
        means = np.array([np.ravel(mean) for mean, _, _ in found], np.float64)
        contrast = np.log([float(np.ravel(spread)[0]) for _, spread, _ in found])
        rows, columns = found[0][2].shape[2:]
        looked_at = _looked_at(seen, (rows, columns))
        places = np.array([at[0].reshape(len(at[0]), -1)[:, looked_at] for _, _, at in found])
        mean = means.mean(0)
        lacking = mean - means
        overall = lacking.mean(1)
        colour = lacking - overall[:, None] * mean / max(mean.mean(), LEAST)
        return cls(
            mean=mean.astype(np.float32),
            spread=float(np.exp(contrast.mean())),
            places=places.mean(0),
            greys=np.sort(places).mean(0),
            slopes=_slopes(places.mean(1, np.float64), rows, columns, looked_at),
            of_brightness=_share(_drift(mean.mean(), DRIFT), overall),
            of_colour=_share(_drift(mean.mean(), TINT), colour),
            of_contrast=_share(DRIFT[0], contrast - contrast.mean()),
        )

    def even(self, planes: ov.Output, seen: Floats | None) -> ov.Output:
        """planes (1, channels, height, width), 0 to 255, as the light of the good frames shows them. What
        is ignored stays as it is; seen: see seen_share.
        """
        mean, spread, at = measured(planes, seen)
        looked_at = op.constant(_looked_at(seen, at.get_shape()[2:]))
        flat = op.reshape(at, op.constant([len(self.mean), -1]), False)
        places = op.gather(flat, looked_at, op.constant(1)).output(0)
        most = self._most(places)
        brightness = float(self.mean.mean())
        proportions = _of_channels(self.mean / max(brightness, LEAST))
        lacking = op.subtract(_of_channels(self.mean), mean)
        overall = op.reduce_mean(lacking, op.constant([1]), True)
        colour = op.subtract(lacking, op.multiply(overall, proportions))
        move = op.add(
            op.multiply(_share_of(overall, self.of_brightness, _drift(brightness, DRIFT), most), proportions),
            _share_of(colour, self.of_colour, _drift(brightness, TINT), most),
        )
        ratio = op.divide(op.constant(np.float32(self.spread)), spread)
        gain = op.exp(_share_of(op.log(ratio), self.of_contrast, DRIFT[0], most))
        moved = op.add(op.subtract(mean, op.multiply(mean, gain)), move)
        # One a channel, side by side and parted again: else OpenVINO computes them anew for every pixel.
        both = op.concat([op.multiply(gain, _of_channels(np.ones_like(self.mean))), moved], 0)
        gain, moved = op.split(both, op.constant(0), 2).outputs()
        down, across = self._sloping(places, most, planes.get_shape()[2:])
        gains = op.multiply(gain, op.subtract(op.constant(np.float32(1)), op.add(down, across)))
        if seen is not None:
            kept = op.multiply(op.subtract(op.constant(np.float32(1)), gains), op.constant(FILL * (1 - seen)))
            moved = op.add(op.multiply(moved, op.constant(seen)), kept).output(0)
        evened = op.clamp(op.add(op.multiply(planes, gains), moved), 0.0, 255.0).output(0)
        evened.get_tensor().set_names({EVENED})
        return evened

    def _most(self, places: ov.Output) -> ov.Output:
        """How many standard deviations are made good in a frame of such blocks, (1, 1, 1, 1)."""
        count = self.places.shape[1]
        greys = op.topk(places, op.constant(count), 1, "min", "value").output(0)
        most = op.constant(np.float32(MOST)).output(0)
        for found, known in ((places, self.places), (greys, self.greys)):
            if (changed := _middle(found, known)) is not None:
                most = op.minimum(most, op.multiply(changed, op.constant(np.float32(SHOWN)))).output(0)
        return op.reshape(most, op.constant([1, 1, 1, 1]), False).output(0)

    def _sloping(
        self, places: ov.Output, most: ov.Output, size: Sequence[int]
    ) -> tuple[ov.Output, ov.Output]:
        """By what share light is more, down (1, 1, height, 1) and across (1, 1, 1, width)."""
        known = self.places.mean(0)
        apart = op.subtract(op.reduce_mean(places, op.constant([0])), op.constant(known))
        apart = op.divide(apart, op.constant(np.maximum(known, BLACK)))
        # No product of matrices, which 8 bits would take for a layer.
        slopes = op.reduce_sum(op.multiply(op.constant(self.slopes), apart), op.constant([1]))
        slopes = _share_of(op.reshape(slopes, op.constant([2, 1, 1, 1]), False), 1.0, SLOPE, most)
        down, across = op.split(slopes, op.constant(0), 2).outputs()
        y, x = (op.constant(_centres(pixels)) for pixels in size)
        down = op.multiply(down, op.unsqueeze(y, op.constant([0, 1, 3]))).output(0)
        return down, op.multiply(across, op.unsqueeze(x, op.constant([0, 1, 2]))).output(0)

    @property
    def parameters(self) -> dict[str, float]:
        """For recipe.toml."""
        shares = self.of_brightness, self.of_colour, self.of_contrast
        return {name: round(share, 3) for name, share in zip(RELIT, shares, strict=True)}


def measured(planes: ov.Output, seen: Floats | None) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Of the pixels of planes (1, channels, height, width), in grey levels: their means, (1, channels, 1, 1);
    the mean distance from these over all channels, (1, 1, 1, 1); means of blocks, (1, channels, rows,
    columns). seen: see seen_share.
    """
    planes = _pooled(planes, SIDE)
    weights = None if seen is None else _weights(seen)
    counted = _counted(planes, weights)
    mean = op.reduce_mean(counted, op.constant([2, 3]), True).output(0)
    apart = _counted(op.abs(op.subtract(planes, mean)).output(0), weights)
    apart = op.reduce_mean(apart, op.constant([2, 3]), True).output(0)
    spread = op.reduce_mean(apart, op.constant([1]), True)
    at = _pooled(counted, BLOCKS)
    if weights is not None:
        share = np.maximum(_in_blocks(weights, BLOCKS), np.float32(1e-6))
        at = op.divide(at, op.constant(share)).output(0)
    return mean, op.maximum(spread, op.constant(np.float32(LEAST))).output(0), at


def seen_share(geometry: Geometry, ignored: Mask | None) -> Floats | None:
    """What share of each pixel of the scaled region is not ignored, (1, 1, rows, columns); None: of all 1."""
    x, y, width, height = geometry.roi
    if ignored is None or not ignored[y : y + height, x : x + width].any():
        return None
    seen = (~ignored[y : y + height, x : x + width]).astype(np.float32)
    size = geometry.columns.length, geometry.rows.length
    how = cv2.INTER_AREA if geometry.scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(seen, size, interpolation=how), np.float32)[None, None]


def _weights(seen: Floats) -> Floats:
    """How much each of the SIDE blocks counts, 1 in the mean: what is ignored to more than a little counts
    nothing, where there are others.
    """
    share = _in_blocks(seen, SIDE)
    whole = share > SEEN
    weights = np.where(whole, share, 0) if whole.any() else share
    return np.asarray(weights / weights.mean(), np.float32)


def _looked_at(seen: Floats | None, shape: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which of the blocks of such a shape, row by row, count."""
    if seen is None:
        return np.arange(math.prod(shape))
    return np.flatnonzero(_in_blocks(_weights(seen), BLOCKS))


def _step(shape: Sequence[int], side: int) -> list[int]:
    """Rows and columns of a block of planes of such a shape."""
    return [max(1, pixels // side) for pixels in shape[2:]]


def _pooled(planes: ov.Output, side: int) -> ov.Output:
    """Means of blocks, at least side of them in each direction; of smaller planes the pixels."""
    step = _step(planes.get_shape(), side)
    return planes if max(step) == 1 else op.avg_pool(planes, step, [0, 0], [0, 0], step, True).output(0)


def _in_blocks(values: Floats, side: int) -> Floats:
    """The same of values (1, 1, rows, columns)."""
    step = _step(values.shape, side)
    rows, columns = (pixels // size for pixels, size in zip(values.shape[2:], step, strict=True))
    whole = values[0, 0, : rows * step[0], : columns * step[1]]
    return np.asarray(whole.reshape(rows, step[0], columns, step[1]).mean((1, 3)))[None, None]


def _slopes(places: Doubles, rows: int, columns: int, looked_at: npt.NDArray[np.int64]) -> Floats:
    """(2, blocks) from good frames' blocks (frames, blocks), in grey levels: see Light."""
    mean = places.mean(0)
    variance = places.var(0) / np.maximum(mean, BLACK) ** 2 + NOISE**2
    down, across = np.meshgrid(_centres(rows), _centres(columns), indexing="ij")
    by = np.stack([np.ones(len(mean)), down.ravel()[looked_at], across.ravel()[looked_at]], 1)
    weighed = by.T * (_told(mean) / variance)
    prior = np.diag([0, SLOPE**-2, SLOPE**-2]) + 1e-9 * np.eye(3)
    return np.asarray(np.linalg.solve(weighed @ by + prior, weighed)[1:], np.float32)


def _centres(count: int) -> Floats:
    """Of so many blocks or pixels side by side, between -1 and 1."""
    return ((np.arange(count, dtype=np.float32) + 0.5) * 2 / count - 1).astype(np.float32)


def _told(greys: Floats | Doubles) -> npt.NDArray[np.bool_]:
    """Which of these grey levels show what a lamp does."""
    return (greys > BLACK) & (greys < WHITE)


def _middle(found: ov.Output, known: Floats) -> ov.Output | None:
    """By how many standard deviations of light half of the greys that tell differ; None: none tells."""
    told = np.flatnonzero(_told(known))
    if not len(told):
        return None
    changed = op.abs(op.subtract(found, op.constant(known)))
    drifts = op.divide(changed, op.constant(np.float32(DRIFT[0]) * np.maximum(known, BLACK)))
    drifts = op.gather(op.reshape(drifts, op.constant([-1]), False), op.constant(told), op.constant(0))
    lower = op.topk(drifts, op.constant((len(told) + 1) // 2), 0, "min", "value")
    return op.reduce_max(lower.output(0), op.constant([0])).output(0)


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


def _counted(planes: ov.Output, weights: Floats | None) -> ov.Output:
    """Each pixel as much as it counts."""
    return planes if weights is None else op.multiply(planes, op.constant(weights)).output(0)


def _of_channels(values: Floats) -> ov.Output:
    return op.constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1)).output(0)
