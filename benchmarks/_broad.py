"""Made-up defects that cover a quarter to three quarters of a part; those of calibrate/pretrain are small."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from calibrate.pretrain.fields import Dice, grey, noise_at, sampled, softened

KINDS = 5


def broaden(good: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """One image struck broadly, (1, 3, height, width) from 0 to 255; other is a good image of its size.

    Inside a region that is darker or brighter, blurred, grainy, washed out, or shows another part's
    content out of place.
    """
    dice = Dice(generator, 1, good.device)
    changed = (
        good * (1 + dice.sign() * dice.uniform(0.12, 0.4)),
        softened(good, 2),
        good + dice.uniform(7, 22) * dice.normal(1, *good.shape[2:]),
        good + dice.uniform(0.3, 0.8) * (good.mean((2, 3), keepdim=True) - good),
        _out_of_place(other, dice),
    )[int(dice.uniform(0, KINDS))]
    return (good + _cover(good, dice) * (changed - good)).clamp(0, 255)


def _out_of_place(other: Tensor, dice: Dice) -> Tensor:
    height, width = other.shape[2:]
    return sampled(other, *(dice.sign() * dice.uniform(1 / 12, 1 / 3) * side for side in (height, width)))


def _cover(images: Tensor, dice: Dice) -> Tensor:
    """From 0 to 1, (1, 1, height, width): one side of a line, or blotches; the edge is sharp or soft."""
    height, width = images.shape[2:]
    v = torch.linspace(-1, 1, height).view(1, 1, -1, 1).expand_as(grey(images))
    u = torch.linspace(-1, 1, width).view(1, 1, 1, -1).expand_as(grey(images))
    angle = dice.uniform(0, 2 * math.pi)
    line = angle.cos() * u + angle.sin() * v
    field = torch.where(dice.chance(0.5), line, noise_at(dice, 0.3 * u, 0.3 * v))
    # By numpy: torch has a bound on size.
    threshold = float(np.quantile(field.numpy(), float(dice.uniform(0.25, 0.75))))
    edge = dice.uniform(0.01, 0.15) * (field.max() - field.min())
    return ((field - threshold) / edge + 0.5).clamp(0, 1)
