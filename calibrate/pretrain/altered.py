"""Defects that change what is there: broken edges, distortion, blur, roughness, misplaced pieces.

Each takes images and sources (n, channels, h, w) from 0 to 255 and gives the struck images, not yet clipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.pretrain.added import contrast
from calibrate.pretrain.fields import (
    Dice,
    Place,
    anywhere,
    busy_place,
    noise_at,
    region,
    sampled,
    softened,
    some_place,
)


def chip(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A bite out of a strong edge or the border: filled with what lies beyond it, or grown over it."""
    edge, free = busy_place(dice, images, power=3), anywhere(dice, images)
    rim = dice.chance(0.2)
    y = torch.where(rim & dice.chance(0.5), torch.zeros_like(free.y), torch.where(rim, free.y, edge.y))
    x = torch.where(rim & (y > 0), torch.zeros_like(free.x), torch.where(rim, free.x, edge.x))
    lying = Place(y, x, edge.angle + math.pi / 2 + dice.uniform(-0.6, 0.6))
    bite = region(dice, images, lying, area=(0.001, 0.05), ragged=0.5, softest=0.3, square=0.1, longest=3)
    far = bite.half_width * dice.uniform(1.6, 2.6) * dice.sign()
    beyond = sampled(images, far * edge.angle.sin(), far * edge.angle.cos())
    return images + bite.cover * (beyond - images)


def warp(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A place pushed, pinched, swirled or crumpled by a few pixels."""
    place = some_place(dice, images, 0.9)
    area = region(dice, images, place, area=(0.006, 0.12), ragged=0.2, softest=1, square=0, longest=3)
    along, across = Place(place.y, place.x, torch.zeros_like(place.x)).axes(*images.shape[-2:])
    reach = (area.half_length * area.half_width).sqrt()
    push = area.cover * dice.uniform(2, 9) * (reach / 12).clamp(0.5, 1.5)
    u, v = along / reach, across / reach
    kind = dice.uniform(0, 4).floor()
    bump = noise_at(dice, u * 0.5, v * 0.5)
    dx = torch.where(
        kind == 0, -v, torch.where(kind == 1, u, torch.where(kind == 2, bump, place.angle.cos()))
    )
    dy = torch.where(
        kind == 0, u, torch.where(kind == 1, v, torch.where(kind == 2, -bump, place.angle.sin()))
    )
    push = push * dice.sign()
    return sampled(images, push * dy, push * dx)


def shift(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A piece displaced by a few pixels, so that the pattern breaks at its edge."""
    place = some_place(dice, images, 0.9)
    area = region(dice, images, place, area=(0.004, 0.12), ragged=0.3, softest=0.15, square=0.5)
    far = dice.log_uniform(2, 12)
    way = dice.uniform(0, 2 * math.pi)
    return images + area.cover * (sampled(images, far * way.sin(), far * way.cos()) - images)


def blur(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A place out of focus, or dragged along one direction."""
    area = region(
        dice, images, some_place(dice, images, 0.9), area=(0.004, 0.12), ragged=0.5, softest=0.6, longest=4
    )
    way, pitch = dice.uniform(0, 2 * math.pi), dice.uniform(1, 3.5)
    dragged = images
    for double in (1, 2, 4):
        step = pitch * double
        dragged = (dragged + sampled(dragged, step * way.sin(), step * way.cos())) / 2
    hazy = torch.where(dice.chance(0.5), softened(images, 2), softened(images, 3))
    changed = torch.where(dice.chance(0.5), dragged, hazy)
    return images + area.cover * dice.uniform(0.6, 1) * (changed - images)


def rough(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A place with other grain: noise added, or the ground's own grain strengthened or taken away."""
    height, width = images.shape[-2:]
    area = region(
        dice, images, some_place(dice, images), area=(0.003, 0.12), ragged=0.6, softest=0.8, longest=5
    )
    smooth = softened(images, 2)
    grain = dice.normal(1, height, width)
    grain = torch.where(dice.chance(0.5), grain, softened(grain, 1) * 2.5)
    noisy = images + grain * contrast(dice, images, area.cover, 50).clamp(max=60) * 0.8
    gain = torch.where(dice.chance(0.5), dice.uniform(0, 0.4), dice.uniform(1.8, 3.5))
    regrained = smooth + (images - smooth) * gain
    return images + area.cover * (torch.where(dice.chance(0.65), noisy, regrained) - images)
