"""Defects that put something onto the part: foreign texture, paint, scratches, spots, stains.

Each takes images and sources (n, channels, h, w) from 0 to 255 and gives the struck images, not yet clipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.pretrain.fields import (
    Dice,
    Place,
    anywhere,
    grey,
    mean_under,
    region,
    smoothstep,
    some_place,
    spread_under,
    turned,
)
from calibrate.pretrain.strokes import STEPS, STRAIGHT_PX, Lines, drawn, wander

FAINTEST = 7.0  # grey levels
STRONGEST = 110.0


def contrast(dice: Dice, images: Tensor, cover: Tensor, strongest: float = STRONGEST) -> Tensor:
    """Grey levels by which a defect differs: from faint to strong, more on rough ground; (n, 1, 1, 1)."""
    hidden = spread_under(images, cover) * dice.uniform(0.5, 1.5)
    return (dice.log_uniform(FAINTEST, strongest) + hidden).clamp(max=160)


def tint(dice: Dice, images: Tensor, strength: float = 0.3) -> Tensor:
    """Factors around 1 for the channels, (n, channels, 1, 1); all 1 on a grey image and on most others."""
    coloured = dice.chance(0.4) * (images.shape[1] > 1)
    return 1 + strength * coloured * dice.normal(images.shape[1], 1, 1).clamp(-2, 2)


def toward_room(dice: Dice, images: Tensor, cover: Tensor) -> Tensor:
    """Brighter (1) or darker (-1), where there is room for it; (n, 1, 1, 1)."""
    room = mean_under(grey(images), cover) / 255
    return (dice.uniform(0, 1) > smoothstep((room - 0.15) / 0.7)).float() * 2 - 1


def paste(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A piece of another image or of elsewhere in this one, turned and scaled, sharp or soft at its edge.

    Li et al. 2021, "CutPaste"; Schlüter et al. 2022, "Natural synthetic anomalies" (NSA), pastes smoothly.
    """
    donors = torch.where(dice.chance(0.5), images, sources)
    place = some_place(dice, images)
    cut = region(dice, images, place, ragged=0.4, square=0.4)
    origin = anywhere(dice, images)
    straight = dice.chance(0.4)
    angle = torch.where(straight, torch.zeros_like(origin.angle), origin.angle * dice.sign())
    scale = torch.where(straight, torch.ones_like(angle), dice.log_uniform(0.6, 1.6))
    piece = turned(donors, Place(origin.y, origin.x, angle), place, scale)
    gap = mean_under(images, cut.cover) - mean_under(piece, cut.cover)
    piece = piece + gap * dice.uniform(0.3, 1.0) * dice.chance(0.6)
    opacity = torch.where(dice.chance(0.6), torch.ones_like(scale), dice.uniform(0.4, 1))
    return images + cut.cover * opacity * (piece - images)


def texture(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """Foreign texture blended in through a mask of thresholded noise.

    Zavrtanik et al. 2021, "DRAEM", section 3.3; faint blends matter there.
    """
    place = some_place(dice, images)
    mask = region(dice, images, place, ragged=1.2, softest=0.3, square=0.0, longest=3)
    origin = anywhere(dice, images)
    foreign = turned(sources, origin, place, dice.log_uniform(0.4, 1.5))
    foreign = torch.where(dice.chance(0.2), 255 - foreign, foreign)
    return images + mask.cover * dice.log_uniform(0.15, 1) * (foreign - images)


def flat(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """One plain colour: dark, bright or near the ground's own, in a blob, rectangle or polygon."""
    area = region(dice, images, some_place(dice, images), ragged=0.7, softest=0.3, square=0.3, longest=8)
    cover = torch.where(dice.chance(0.3), area.cover * _polygon(dice, images, area.place), area.cover)
    ground = mean_under(images, cover)
    level = ground + toward_room(dice, images, cover) * contrast(dice, images, cover)
    level = torch.where(dice.chance(0.25), dice.uniform(0, 255).expand_as(level), level)
    colour = level * tint(dice, images)
    opacity = torch.where(dice.chance(0.5), dice.uniform(0.3, 1), torch.ones_like(cover[:, :, :1, :1]))
    return images + cover * opacity * (colour - images)


def _polygon(dice: Dice, images: Tensor, place: Place) -> Tensor:
    """A convex polygon around the place: what lies on the inner side of four random lines, (n, 1, h, w)."""
    height, width = images.shape[-2:]
    reach = dice.log_uniform(0.03, 0.25) * math.sqrt(height * width)
    inside = torch.ones_like(images[:, :1])
    for corner in range(4):
        angle = dice.uniform(-0.5, 0.5) + corner * math.pi / 2
        along, _ = Place(place.y, place.x, angle).axes(height, width)
        inside = inside * (reach * dice.uniform(0.3, 1) - along + 0.5).clamp(0, 1)
    return inside


def scratch(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """One to three thin lines, straight or curved; dark, bright, or a bright and a dark line side by side."""
    height, width = images.shape[-2:]
    side = min(height, width)
    place = some_place(dice, images, 0.3)
    near = dice.uniform(0, 0.15, 3) * side
    away = dice.uniform(0, 2 * math.pi, 3)
    angle = place.angle[:, :, 0, 0] + dice.normal(3) * dice.log_uniform(0.02, 0.6, 1)
    length = dice.log_uniform(0.06, 0.9, 3) * side
    bent = torch.where(dice.chance(0.5, 1), dice.log_uniform(0.5, 8, 3) * length, STRAIGHT_PX)
    half_width = (
        dice.log_uniform(0.35, 1.5, 3, 1)
        * _ends(dice, 3)
        * dice.uniform(0.7, 1.1, 3, STEPS // 16)[..., torch.arange(STEPS, device=dice.device) // 16]
    )
    half_width = half_width * (
        torch.arange(3, device=dice.device).view(1, 3, 1) < dice.uniform(1, 4, 1, 1).floor()
    )
    lines = Lines(
        place.y[:, :, 0, 0] + near * away.sin() - length / 2 * angle.sin(),
        place.x[:, :, 0, 0] + near * away.cos() - length / 2 * angle.cos(),
        angle,
        bent * dice.sign(3),
        length,
        wander(dice, 3, 24) * dice.uniform(0, 3, 1, 1),
        half_width,
    )
    cover = drawn(lines, height, width).amax(1, keepdim=True)
    amount = contrast(dice, images, cover) * 1.2 * toward_room(dice, images, cover)
    shift = torch.where(dice.chance(0.3), 1, 0) * amount * dice.uniform(0.4, 1)
    pair = cover.roll((1, 1), (2, 3)) * (1 - cover)
    return images + tint(dice, images, 0.2) * (cover * amount - pair * shift)


def _ends(dice: Dice, count: int) -> Tensor:
    """Line widths that run out at one end or both, (n, count, STEPS), at most 1."""
    t = torch.linspace(0, 1, STEPS, device=dice.device)
    first, last = dice.uniform(0, 0.5, count, 1), dice.uniform(0, 0.5, count, 1)
    return (0.3 + t / (first + 0.01)).clamp(max=1) * (0.3 + (1 - t) / (last + 0.01)).clamp(max=1)


def spot(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """One to five soft spots, dark or bright; some are blowholes with a rim lit from one side."""
    height, width = images.shape[-2:]
    side = min(height, width)
    place = some_place(dice, images, 0.4)
    apart = dice.log_uniform(0.04, 0.4) * side
    near = dice.normal(5, 2) * apart[:, :, :, 0] * (torch.arange(5, device=dice.device) > 0).view(1, 5, 1)
    radius = dice.log_uniform(0.012, 0.07)[..., 0] * side * dice.log_uniform(0.6, 1.4, 5, 1)
    dy = torch.arange(height, device=dice.device).view(1, 1, -1, 1) - place.y - near[:, :, :1, None]
    dx = torch.arange(width, device=dice.device).view(1, 1, 1, -1) - place.x - near[:, :, 1:, None]
    skew, stretch = dice.uniform(-0.4, 0.4, 5, 1, 1), dice.uniform(0.7, 1.3, 5, 1, 1)
    dx, dy = dx + skew * dy, dy * stretch
    apart_px = (dx * dx + dy * dy).sqrt()
    there = (torch.arange(5, device=dice.device) < dice.uniform(1, 6, 1).floor())[..., None, None]
    edge = (dice.uniform(0.1, 1.2, 1, 1, 1) * radius[..., None]).clamp(min=1)
    core = smoothstep((radius[..., None] - apart_px) / edge + 0.5) * there
    cover = core.amax(1, keepdim=True)
    amount = contrast(dice, images, cover) * toward_room(dice, images, cover)
    rim = smoothstep((radius[..., None] * 1.5 - apart_px) / edge + 0.5) * there
    light = dice.uniform(0, 2 * math.pi)
    lit = ((dx * light.cos() + dy * light.sin()) / (apart_px + 1)).clamp(min=-0.3)
    halo = ((rim - core).clamp(min=0) * lit).sum(1, keepdim=True).clamp(-1, 1)
    return images + tint(dice, images) * amount * (cover - halo * dice.uniform(0.2, 0.7) * dice.chance(0.35))


def stain(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A soft patch that darkens or brightens what it covers, as oil, water or wear does."""
    area = region(
        dice,
        images,
        some_place(dice, images),
        area=(0.004, 0.09),
        ragged=0.7,
        softest=1.0,
        square=0,
        longest=4,
    )
    cover = area.cover
    dried = (cover * (1 - cover) * 4) * dice.uniform(0.3, 1) * dice.chance(0.25)
    level = mean_under(grey(images), cover).clamp(min=20)
    change = contrast(dice, images, cover, 70).clamp(max=80) * toward_room(dice, images, cover)
    factor = change / level * tint(dice, images, 0.25)
    return images * (1 + factor.clamp(-0.9, 3) * torch.maximum(cover, dried))
