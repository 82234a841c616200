"""What good parts do anyway between two exposures: light, exposure, noise, focus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.pretrain.fields import Dice, softened


def vary(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """The same parts under other light, exposure, focus and sensor noise; float32 (n, 3, h, w) from 0 to 255.

    At strength 1 about: gain 15 %, offset 10 grey levels, gamma 1.25, uneven light 15 %,
    noise of 3 grey levels.
    Strength 0 gives the images back unchanged.
    """
    if strength == 0:
        return images
    dice = Dice(generator, len(images), images.device)
    lit = _toned(_focused(images, dice, strength), dice, strength) * _light(images, dice, strength)
    return _noisy(lit, dice, strength).clamp(0, 255)


def _focused(images: Tensor, dice: Dice, strength: float) -> Tensor:
    """Slightly defocused (towards -1) or sharpened."""
    amount = dice.uniform(-0.7, 0.5) * dice.chance(0.5) * strength
    return images + amount * (images - softened(images, 1))


def _toned(images: Tensor, dice: Dice, strength: float) -> Tensor:
    """Other gain, offset and gamma; the channels apart by a few per cent where the image has colour."""
    gain = (0.15 * strength * dice.uniform(-1, 1)).exp()
    gamma = (0.22 * strength * dice.uniform(-1, 1)).exp()
    offset = 10 * strength * dice.uniform(-1, 1)
    return (images.clamp(0, 255) / 255).pow(gamma) * (255 * gain) + offset


def _light(images: Tensor, dice: Dice, strength: float) -> Tensor:
    """A factor for each pixel, (n, 1, h, w): a slope in any direction and a fall-off towards the corners."""
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height, device=images.device).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width, device=images.device).view(1, 1, 1, -1)
    way, slope = dice.uniform(0, 2 * math.pi), dice.uniform(0, 0.12) * strength
    fall = dice.uniform(0, 0.12) * strength * dice.chance(0.5)
    across = slope * way.cos() * x - fall / 2 * x * x
    down = slope * way.sin() * y - fall / 2 * y * y
    return 1 + across + down


def _noisy(images: Tensor, dice: Dice, strength: float) -> Tensor:
    """Shot noise, which grows with the root of the brightness, and read noise.

    The channels share it: so grey stays grey, at a third of the time.
    """
    shot = dice.uniform(0, 3.0) * strength
    read = dice.uniform(0, 2.0) * strength
    bright = images.mean(1, keepdim=True).clamp(0, 255) / 255
    sigma = (shot * shot * bright + read * read).sqrt()
    return images + sigma * dice.normal(1, *images.shape[-2:])
