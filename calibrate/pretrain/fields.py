"""Random numbers, noise, places and soft regions, batched: what defects and nuisance are drawn with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

AREA = (0.001, 0.12)  # of the image; soft and ragged outlines add to it
CELL_PX = 4  # busy places are sought on a grid of this pitch
LATTICE = 65


@dataclass(frozen=True)
class Dice:
    """Random numbers for `count` images, all from one generator and given out on the images' device."""

    generator: torch.Generator
    count: int
    device: torch.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Of shape (count, *shape); (count, 1, 1, 1) where none is named."""
        drawn = torch.rand(
            self.count, *(shape or (1, 1, 1)), generator=self.generator, device=self.generator.device
        )
        return drawn.to(self.device) * (high - low) + low

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(self.count, *shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return self.uniform(0, 1, *shape) < probability

    def sign(self, *shape: int) -> Tensor:
        return self.chance(0.5, *shape).float() * 2 - 1


@dataclass(frozen=True)
class Place:
    """Where a defect sits: centre (y, x) in pixels and direction in radians, each of shape (n, 1, 1, 1)."""

    y: Tensor
    x: Tensor
    angle: Tensor

    def axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Pixel coordinates along and across the direction, each (n, 1, height, width)."""
        dy = torch.arange(height, device=self.y.device).view(1, 1, -1, 1) - self.y
        dx = torch.arange(width, device=self.y.device).view(1, 1, 1, -1) - self.x
        cos, sin = self.angle.cos(), self.angle.sin()
        return dx * cos + dy * sin, dy * cos - dx * sin


def grey(images: Tensor) -> Tensor:
    """Mean over the channels, (n, 1, h, w)."""
    return images.mean(1, keepdim=True)


def slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Brightness slope down and right on a grid of CELL_PX, each (n, 1, rows, columns)."""
    small = functional.avg_pool2d(grey(images), CELL_PX, ceil_mode=True)
    padded = functional.pad(small, (1, 1, 1, 1), mode="replicate")
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    return down, right


def anywhere(dice: Dice, images: Tensor) -> Place:
    """Uniform over the image, its border included, in any direction."""
    height, width = images.shape[-2:]
    return Place(dice.uniform(0, height - 1), dice.uniform(0, width - 1), dice.uniform(0, math.pi))


def busy_place(dice: Dice, images: Tensor, power: float = 1.0) -> Place:
    """On edges and structure, the likelier the stronger; the direction is that of the brightness slope."""
    down, right = slopes(images)
    weights = (down.square() + right.square()).flatten(1).pow(power / 2) + 1e-3
    cell = _choose(dice, weights)
    columns = down.shape[-1]

    def at(values: Tensor) -> Tensor:
        return values.flatten(1).gather(1, cell).view(-1, 1, 1, 1)

    def centre(index: Tensor) -> Tensor:
        return index.view(-1, 1, 1, 1) * CELL_PX + dice.uniform(0, CELL_PX)

    angle = torch.atan2(at(down), at(right) + 1e-6)
    return Place(centre(cell // columns), centre(cell % columns), angle)


def _choose(dice: Dice, weights: Tensor) -> Tensor:
    """One index per row with probability by weight, (n, 1): the winner of a race of exponential times.

    Without cumulated sums, which on a GPU are not the same each time.
    """
    times = -torch.log(dice.uniform(1e-7, 1, weights.shape[1]))
    return (weights / times).argmax(1, keepdim=True)


def some_place(dice: Dice, images: Tensor, busy: float = 0.5) -> Place:
    """Anywhere, or with the probability `busy` on structure."""
    free, held = anywhere(dice, images), busy_place(dice, images)
    pick = dice.chance(busy)
    return Place(torch.where(pick, held.y, free.y), torch.where(pick, held.x, free.x), free.angle)


def noise_at(dice: Dice, u: Tensor, v: Tensor) -> Tensor:
    """Smooth noise of about unit variance, sampled where u and v are from -1 to 1; (n, 1, h, w).

    Two octaves of value noise; Perlin 1985, "An image synthesizer", sums them alike.
    """
    coarse = functional.interpolate(dice.normal(1, 7, 7), LATTICE, mode="bicubic", align_corners=True)
    fine = functional.interpolate(dice.normal(1, 17, 17), LATTICE, mode="bicubic", align_corners=True)
    where = torch.cat((u, v), 1).permute(0, 2, 3, 1)
    return functional.grid_sample(coarse + 0.5 * fine, where, padding_mode="reflection", align_corners=True)


@dataclass(frozen=True)
class Region:
    """A soft region: cover (n, 1, h, w) from 0 to 1, its place and half axes in pixels (n, 1, 1, 1)."""

    cover: Tensor
    place: Place
    half_length: Tensor
    half_width: Tensor


def region(
    dice: Dice,
    images: Tensor,
    place: Place,
    *,
    area: tuple[float, float] = AREA,
    ragged: float = 0.6,
    softest: float = 0.5,
    square: float = 0.2,
    longest: float = 6.0,
) -> Region:
    """An ellipse or (with the probability `square`) a rectangle, its outline disturbed by noise.

    `area` is a share of the image, drawn log-uniform; `softest` the widest edge as a share of the half width;
    `ragged` the strongest disturbance as a share of the radius (from about 1 on it falls into pieces).
    """
    height, width = images.shape[-2:]
    size = dice.log_uniform(*area) * (height * width)
    aspect = dice.log_uniform(1, longest)
    a = (size * aspect / math.pi).sqrt()
    b = (size / aspect / math.pi).sqrt().clamp(min=1.0)
    along, across = place.axes(height, width)
    u, v = along / a, across / b
    round_ = (u * u + v * v).sqrt()
    boxy = torch.maximum(u.abs(), v.abs()) * (2 / math.sqrt(math.pi))
    radius = torch.where(dice.chance(square), boxy, round_)
    zoom = dice.log_uniform(0.15, 0.6)
    disturbed = radius + dice.uniform(0, ragged) * noise_at(dice, u * zoom, v * zoom)
    edge = torch.maximum(dice.uniform(0, softest).square() / max(softest, 1e-6) * 2, 1 / b)
    return Region(smoothstep((1 - disturbed) / edge + 0.5), place, a, b)


def smoothstep(values: Tensor) -> Tensor:
    """0 up to 0, 1 from 1 on, smooth between."""
    held = values.clamp(0, 1)
    return held * held * (3 - 2 * held)


def sampled(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """The images read dy, dx pixels away from each pixel, reflected at the border.

    dy and dx are of shape (n, 1, h, w) or (n, 1, 1, 1).
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) + dy
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1) + dx
    y = (rows * 2 + 1) / height - 1
    x = (columns * 2 + 1) / width - 1
    where = torch.stack(torch.broadcast_tensors(x[:, 0], y[:, 0]), -1)
    return functional.grid_sample(
        images, where.expand(len(images), height, width, 2), padding_mode="reflection", align_corners=False
    )


def turned(images: Tensor, place: Place, to: Place, scale: Tensor) -> Tensor:
    """The images read so that what lies at `place` comes to `to`, turned by place.angle and scaled."""
    along, across = Place(to.y, to.x, place.angle).axes(*images.shape[-2:])
    height, width = images.shape[-2:]
    x = (((along / scale + place.x) * 2 + 1) / width - 1)[:, 0]
    y = (((across / scale + place.y) * 2 + 1) / height - 1)[:, 0]
    return functional.grid_sample(
        images, torch.stack((x, y), -1), padding_mode="reflection", align_corners=False
    )


def softened(images: Tensor, octaves: int = 2) -> Tensor:
    """Blurred by about 0.7, 1.6 or 3.2 pixels (standard deviation) for 1, 2 or 3 octaves.

    A tent of three taps at the spacings 1, 2, 4; Holschneider et al. 1989, "algorithme à trous".
    Measured four times as fast as pooling on one core.
    """
    for octave in range(octaves):
        images = _tent(_tent(images, 2, 1 << octave), 3, 1 << octave)
    return images


def _tent(images: Tensor, dimension: int, spacing: int) -> Tensor:
    """(1, 2, 1) / 4 along one dimension, the border repeated."""
    size = images.shape[dimension]
    pads = (0, 0, spacing, spacing) if dimension == 2 else (spacing, spacing, 0, 0)
    padded = functional.pad(images, pads, mode="replicate")
    ends = padded.narrow(dimension, 0, size) + padded.narrow(dimension, 2 * spacing, size)
    return ends.mul_(0.25).add_(images, alpha=0.5)


def mean_under(images: Tensor, cover: Tensor) -> Tensor:
    """Mean of each channel weighted by cover, (n, c, 1, 1)."""
    return (images * cover).sum((2, 3), keepdim=True) / cover.sum((2, 3), keepdim=True).clamp(min=1e-3)


def spread_under(images: Tensor, cover: Tensor) -> Tensor:
    """Standard deviation of the brightness weighted by cover, (n, 1, 1, 1)."""
    bright = grey(images)
    return mean_under((bright - mean_under(bright, cover)).square(), cover).clamp(min=0).sqrt()
