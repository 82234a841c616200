"""Thin lines with antialiasing: scratches, cracks, fibres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrate.pretrain.fields import Dice

STEPS = 192  # along a line: finer than a pixel for lines up to that length
STRAIGHT_PX = (
    4000.0  # radius of curvature that counts as straight; float32 still resolves a thousandth of a pixel
)


@dataclass(frozen=True)
class Lines:
    """k lines per image: start (y, x), direction, signed radius of curvature and length, each (n, k), pixels.

    Along each, (n, k, STEPS): sway, its distance from its arc, and half_width; 0 is no line.
    """

    y: Tensor
    x: Tensor
    angle: Tensor
    radius: Tensor
    length: Tensor
    sway: Tensor
    half_width: Tensor


def drawn(lines: Lines, height: int, width: int) -> Tensor:
    """How much of each pixel each line covers, (n, k, height, width) from 0 to 1."""
    device = lines.y.device
    dy = torch.arange(height, device=device).view(1, 1, -1, 1) - _wide(lines.y)
    dx = torch.arange(width, device=device).view(1, 1, 1, -1) - _wide(lines.x)
    cos, sin = _wide(lines.angle.cos()), _wide(lines.angle.sin())
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    radius, side, length = _wide(lines.radius.abs()), _wide(lines.radius.sign()), _wide(lines.length)
    inward = radius - side * across
    u = radius * torch.atan2(along, inward)
    v = side * (radius - (along * along + inward * inward).sqrt())
    step = (u / length * (STEPS - 1)).round().clamp(0, STEPS - 1).long().flatten(2)
    sway = lines.sway.gather(2, step).view_as(u)
    half_width = lines.half_width.gather(2, step).view_as(u)
    apart = (v - sway).abs() * _flatness(lines).gather(2, step).view_as(u)
    beyond = (u - length / 2).abs() - length / 2
    body = (half_width - apart + 0.5).clamp(0, 1)
    return body * (0.5 - beyond).clamp(0, 1) * (half_width > 0)


def _flatness(lines: Lines) -> Tensor:
    """Cosine of the angle between line and arc at each step, so that steep parts are not thinner."""
    rise = lines.sway.diff(dim=-1, append=lines.sway[..., -1:]) * STEPS / lines.length[..., None]
    return (1 + rise * rise).rsqrt().clamp(min=0.25)


def wander(dice: Dice, count: int, smooth: int) -> Tensor:
    """A random walk of unit spread that starts at 0, smoothed over `smooth` steps, (n, count, STEPS)."""
    kicks = dice.normal(count, STEPS + smooth)
    walk = kicks.cumsum(-1).unfold(-1, smooth, 1).mean(-1)[..., :STEPS] / math.sqrt(STEPS)
    return walk - walk[..., :1]


def _wide(values: Tensor) -> Tensor:
    return values[..., None, None]
