"""Defect families kept out of training: a model is chosen by how it finds these.

Each takes images and sources (n, channels, h, w) from 0 to 255 and gives the struck images, not yet clipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.pretrain.added import contrast, tint, toward_room
from calibrate.pretrain.fields import Dice, Place, mean_under, region, smoothstep, softened, some_place
from calibrate.pretrain.strokes import STEPS, STRAIGHT_PX, Lines, drawn, wander

BRANCHES = 4


def crack(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A jagged line that runs out, with up to three branches leaving it."""
    height, width = images.shape[-2:]
    place = some_place(dice, images, 0.4)
    length = dice.log_uniform(0.12, 0.8, 1) * min(height, width)
    trunk = wander(dice, 1, 9) * length[..., None] * dice.uniform(0.1, 0.35, 1, 1)
    heading = place.angle[:, :, 0, 0] + math.pi * dice.chance(0.5, 1)
    off = dice.uniform(0.15, 0.75, BRANCHES - 1)
    left = trunk.expand(-1, BRANCHES - 1, -1).gather(2, (off * STEPS).long()[..., None])[..., 0]
    cos, sin = heading.cos(), heading.sin()
    y0 = place.y[:, :, 0, 0] - length / 2 * sin
    x0 = place.x[:, :, 0, 0] - length / 2 * cos
    lengths = length * (1 - off) * dice.uniform(0.3, 0.9, BRANCHES - 1)
    taper = torch.linspace(1, 0.25, STEPS, device=dice.device)
    widest = dice.log_uniform(0.4, 1.6, 1, 1)
    there = torch.arange(BRANCHES - 1, device=dice.device) < dice.uniform(0, BRANCHES, 1).floor()
    lines = Lines(
        torch.cat((y0, y0 + off * length * sin + left * cos), 1),
        torch.cat((x0, x0 + off * length * cos - left * sin), 1),
        torch.cat((heading, heading + dice.sign(BRANCHES - 1) * dice.uniform(0.3, 1.1, BRANCHES - 1)), 1),
        torch.full((dice.count, BRANCHES), STRAIGHT_PX, device=dice.device),
        torch.cat((length, lengths), 1),
        torch.cat((trunk, wander(dice, BRANCHES - 1, 9) * lengths[..., None] * 0.25), 1),
        torch.cat((widest * taper, widest * 0.7 * taper * there[..., None]), 1)
        * dice.uniform(0.7, 1.3, 1, STEPS),
    )
    cover = drawn(lines, height, width).amax(1, keepdim=True)
    amount = contrast(dice, images, cover) * 1.2
    return images - amount * tint(dice, images, 0.1) * cover * torch.where(dice.chance(0.85), 1.0, -1.0)


def pits(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A cluster of tiny dots, one in each cell of a jittered grid at most."""
    place = some_place(dice, images, 0.4)
    area = region(dice, images, place, area=(0.01, 0.12), ragged=0.6, softest=0.5, square=0)
    along, across = place.axes(*images.shape[-2:])
    pitch = dice.log_uniform(5, 12)
    u, v = along / pitch, across / pitch
    cell = (torch.remainder(u.floor(), 16) * 16 + torch.remainder(v.floor(), 16)).long().flatten(1)

    def of_cell(low: float, high: float) -> Tensor:
        return dice.uniform(low, high, 256).gather(1, cell).view_as(u)

    radius = dice.uniform(0.8, 1.8) * of_cell(0.6, 1.2)
    room = (0.5 - radius / pitch).clamp(min=0)
    du = torch.remainder(u, 1) - 0.5 - room * of_cell(-1, 1)
    dv = torch.remainder(v, 1) - 0.5 - room * of_cell(-1, 1)
    dots = (radius - (du * du + dv * dv).sqrt() * pitch + 0.5).clamp(0, 1)
    cover = dots * (of_cell(0, 1) < dice.uniform(0.4, 0.9)) * (area.cover > 0.5)
    amount = contrast(dice, images, area.cover) * 1.2 * toward_room(dice, images, area.cover)
    return images + amount * tint(dice, images, 0.2) * cover


def dent(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A hollow or a bump without colour of its own: bright towards the light, dark away from it."""
    place = some_place(dice, images, 0.4)
    area = region(dice, images, place, area=(0.003, 0.08), ragged=0.3, softest=1, square=0.1, longest=4)
    depth = softened(area.cover, 2)
    light = dice.uniform(0, 2 * math.pi)
    down = depth.roll(-1, 2) - depth.roll(1, 2)
    right = depth.roll(-1, 3) - depth.roll(1, 3)
    down, right = _edgeless(down, 2), _edgeless(right, 3)
    shade = down * light.sin() + right * light.cos()
    shade = shade / shade.abs().amax((2, 3), keepdim=True).clamp(min=1e-4)
    return images + shade * contrast(dice, images, area.cover, 90) * 1.3


def _edgeless(values: Tensor, dimension: int) -> Tensor:
    """Zero in the first and last row or column, where roll wraps around."""
    keep = torch.ones(values.shape[dimension], device=values.device)
    keep[0] = keep[-1] = 0
    return values * keep.view(-1, 1) if dimension == 2 else values * keep


def dropout(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A band or a cell along the image's axes fades to its own mean or goes dark, as inactive areas do."""
    height, width = images.shape[-2:]
    free = some_place(dice, images, 0.3)
    upright = dice.chance(0.5)
    place = Place(free.y, free.x, upright * (math.pi / 2) + dice.uniform(-0.05, 0.05))
    along, across = place.axes(height, width)
    side = math.sqrt(height * width)
    thick = dice.log_uniform(0.015, 0.15) * side
    long = torch.where(dice.chance(0.4), 2.0 * side, thick * dice.log_uniform(1, 5)).clamp(
        max=0.15 * side * side / thick
    )
    edge = dice.log_uniform(1, 6)
    inside = torch.minimum(long / 2 - along.abs(), thick / 2 - across.abs())
    cover = smoothstep(inside / edge + 0.5)
    mean = mean_under(images, cover)
    level = torch.where(dice.chance(0.35), mean, mean * dice.uniform(0.1, 0.85))
    return images + cover * dice.uniform(0.45, 1) * (level - images)


def fibre(images: Tensor, sources: Tensor, dice: Dice) -> Tensor:
    """A long thin curved hair, bright or dark, with a soft shadow beside it."""
    height, width = images.shape[-2:]
    side = min(height, width)
    place = some_place(dice, images, 0.3)
    length = dice.log_uniform(0.2, 1.0, 1) * side
    angle = place.angle[:, :, 0, 0] * 2
    taper = torch.linspace(-1, 1, STEPS, device=dice.device).pow(8)
    lines = Lines(
        place.y[:, :, 0, 0] - length / 2 * angle.sin(),
        place.x[:, :, 0, 0] - length / 2 * angle.cos(),
        angle,
        length * dice.log_uniform(0.2, 1.2, 1) * dice.sign(1),
        length,
        wander(dice, 1, 40) * length[..., None] * dice.uniform(0.05, 0.3, 1, 1),
        dice.log_uniform(0.4, 1.1, 1, 1) * (1 - 0.5 * taper),
    )
    cover = drawn(lines, height, width)
    shadow = softened(cover, 1).roll((2, 2), (2, 3)) * (1 - cover)
    amount = contrast(dice, images, cover) * 1.2 * toward_room(dice, images, cover)
    dark = amount.abs() * dice.uniform(0, 0.8)
    return images + tint(dice, images, 0.3) * amount * cover - dark * shadow
