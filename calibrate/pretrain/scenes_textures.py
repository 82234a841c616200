"""Surfaces without end: every picture of a part is another patch of the same material."""

from __future__ import annotations

import math

import torch

from calibrate.pretrain.canvas import (
    Canvas,
    box,
    cells,
    cover,
    frac,
    hashed,
    hashed2,
    hills,
    profile,
    smooth,
    turned,
    wave,
)


def cast(c: Canvas) -> None:
    """Cast metal, concrete, paint: fractal relief under one light, some with pores."""
    d = c.dice
    c.fill(c.colour(0.2, 0.8, 0.2))
    relief = c.noise(d.each_key(), d.log(1.0, 5.0), d.log(12, 150), d.part(0.3, 2.0))
    stain = c.noise(d.each_key(), 4.0, d.log(20, 120), 1.5)
    x, y = c.roam()
    pore = d.log(6, 20)
    near, _, own = cells(x / pore, y / pore, d.part_key(), d.part(0.6, 1.0))
    pit = d.odds(0.35) * cover((near - 0.12 * own) * pore, 2.0)
    c.scale(1 + d.part(0, 0.12) * stain)
    c.light(relief * d.log(0.25, 1.6) - pit * 1.5, d.odds(0.4) * 0.2)


def brushed(c: Canvas) -> None:
    """Brushed, ground, milled or turned metal: lines and arcs of a random profile over drawn-out noise."""
    d = c.dice
    c.fill(c.colour(0.3, 0.8, 0.12))
    angle = c.lie(0.5, 0.01)
    fine, coarse, drawn = d.log(0.8, 2.0), d.log(8, 60), d.log(8, 60)
    c.scale(1 + d.part(0.04, 0.2) * c.noise(d.each_key(), fine, coarse, 0.6, drawn, angle + math.pi / 2))
    far = d.log(100, 1500)
    x, y = turned(c.x, c.y, angle)
    r = torch.hypot(x + far, y + d.each(-10, 10)) + d.each(0, 400)
    period = d.log(3, 24)
    marks = profile(r / period * 2, d.part_key()) * 0.5 + wave(r / period) * d.odds(0.5)
    c.scale(1 + d.part(0.03, 0.25) * marks)


def cloth(c: Canvas) -> None:
    """Woven cloth: plain, twill and satin, warp and weft of their own colours, threads of varying width."""
    d = c.dice
    x, y = c.roam(0.05)
    bend = c.noise(d.each_key(), 12.0, 80.0, 1.5) * d.part(0, 0.9)
    x, y = x + bend, y + c.noise(d.each_key(), 12.0, 80.0, 1.5) * d.part(0, 0.9)
    wide, tall = d.log(2.4, 14), d.log(2.4, 14)
    tall = torch.where(d.odds(0.6) > 0, wide * d.part(0.8, 1.25), tall)
    i, j = torch.floor(x / wide), torch.floor(y / tall)
    repeat, step = d.count(2, 5), d.count(1, 2)
    over = (torch.remainder(i + step * j, repeat) < torch.floor(repeat / 2)).to(torch.float32)
    u, v = frac(x / wide) - 0.5, frac(y / tall) - 0.5
    warp = torch.cos(u * 3.1) * (0.6 + 0.4 * torch.cos(v * 2.4))
    weft = torch.cos(v * 3.1) * (0.6 + 0.4 * torch.cos(u * 2.4))
    tone = torch.where(over > 0, hashed(i, d.each_key()), hashed(j, d.each_key()))
    c.fill(c.colour())
    other = torch.where(d.odds(0.5).unsqueeze(2) > 0, c.image[:, :1, :, :1, :1], c.colour())
    c.paint(over, other)
    c.scale(1 + d.part(0.02, 0.15) * (tone * 2 - 1))
    height = torch.where(over > 0, warp, weft)
    c.scale(0.45 + 0.55 * height)
    c.light(height * d.log(0.3, 1.5))
    c.grain(d.part(0.02, 0.12))


def perforated(c: Canvas) -> None:
    """Perforated sheet: round or slotted holes on a square or staggered lattice over another ground."""
    d = c.dice
    x, y = c.roam(0.02)
    period = d.log(8, 36)
    tall = period * torch.where(d.odds(0.5) > 0, 0.866, d.part(0.8, 1.6))
    j = torch.floor(y / tall)
    u = (frac(x / period + torch.remainder(j, 2) * 0.5 * d.odds(0.6)) - 0.5) * period
    v = (frac(y / tall) - 0.5) * tall
    radius = torch.minimum(period, tall) * d.part(0.18, 0.42)
    slot = (period * 0.42 - radius).clamp_min(0) * d.odds(0.3)
    hole = box(u, v, radius + slot, radius, radius * torch.where(d.odds(0.7) > 0, 1.0, d.part(0.1, 0.9)))
    c.fill(c.colour(0.3, 0.9, 0.2))
    angle = d.part(0, 3.1416)
    c.scale(1 + d.part(0.02, 0.1) * c.noise(d.each_key(), 1.2, 40.0, 0.8, d.log(1, 15), angle))
    c.light(-smooth(2.0, -2.0, hole) * d.part(0.3, 2.0), d.odds(0.5) * 0.15)
    c.paint(cover(hole), c.colour(0.02, 0.5, 0.3))
    c.grain(d.part(0.01, 0.05))


def leather(c: Canvas) -> None:
    """Leather, hammered paint, cracked glaze: cells with creases between them."""
    d = c.dice
    x, y = c.roam()
    bend = d.part(0.5, 4.0)
    x = x + bend * c.noise(d.each_key(), 10.0, 50.0, 1.0)
    y = y + bend * c.noise(d.each_key(), 10.0, 50.0, 1.0)
    size = d.log(5, 26)
    near, second, own = cells(x / size, y / size / d.part(1.0, 1.8), d.part_key(), d.part(0.7, 1.0))
    crease = smooth(0.0, d.part(0.12, 0.6), second - near)
    c.fill(c.colour(0.12, 0.8))
    c.scale(1 + d.part(0, 0.2) * (own * 2 - 1))
    c.scale(1 - d.part(0.1, 0.6) * (1 - crease))
    c.light(crease * d.log(0.4, 2.5) + 0.3 * c.noise(d.each_key(), 1.5, 8.0, 0.5), d.odds(0.5) * 0.2)


def tiles(c: Canvas) -> None:
    """Tiles, bricks, paving: rounded blocks of their own tone between joints, in shifted rows."""
    d = c.dice
    x, y = c.roam(0.015)
    wide = d.log(16, 70)
    tall = wide / torch.where(d.odds(0.4) > 0, 1.0, d.part(1.0, 3.0))
    j = torch.floor(y / tall)
    x = x + j * wide * torch.where(d.odds(0.4) > 0, 0.0, 0.5)
    i, joint = torch.floor(x / wide), d.part(1.0, 4.0)
    u, v = (frac(x / wide) - 0.5) * wide, (frac(y / tall) - 0.5) * tall
    ragged = d.part(0, 0.8) * c.noise(d.each_key(), 2.0, 10.0, 0.5)
    block = box(u, v, (wide - joint) / 2, (tall - joint) / 2, d.part(0, 0.3) * tall / 2) + ragged
    c.fill(c.colour())
    c.scale(1 + d.part(0.02, 0.3) * (hashed2(i, j, d.each_key()) * 2 - 1))
    c.scale(1 + d.part(0.02, 0.12) * c.noise(d.each_key(), 1.2, 30.0, 1.0))
    c.paint(cover(-block, 1.5), c.colour())
    c.light(smooth(1.0, -d.part(1, 6), block) * d.part(0.3, 3.0), d.odds(0.4) * 0.2)
    c.grain(d.part(0.01, 0.06))


def granules(c: Canvas) -> None:
    """Pebbles, granulate, beads, seeds: domes of two colours and varying size over a darker ground."""
    d = c.dice
    x, y = c.roam()
    size, oval = d.log(7, 26), d.part(1.0, 1.7)
    near, second, own = cells(x / size, y / size / oval, d.part_key(), d.part(0.5, 0.9))
    radius = d.part(0.45, 0.7) * (1 - d.part(0, 0.4) * own)
    inside = torch.minimum(radius - near, (second - near) * 0.6)
    c.fill(c.colour(0.03, 0.5))
    mixed = smooth(0.5, 0.6, frac(own * 7.3))
    mask = cover(-inside * size, 1.5)
    tone = 1 + d.part(0.05, 0.35) * (frac(own * 31.7) * 2 - 1)
    c.paint(mask, c.colour(0.2, 0.95))
    c.paint(mask * mixed * d.odds(0.6), c.colour(0.1, 0.9))
    c.scale(torch.lerp(torch.ones_like(tone), tone, mask))
    dome = torch.sqrt((inside / radius).clamp(0, 1)) * size * d.part(0.1, 0.4)
    c.light(dome, d.odds(0.5) * d.part(0.1, 0.5), 10.0)
    c.grain(d.part(0.01, 0.08))


def ribbed(c: Canvas) -> None:
    """Fins, corrugated board, extruded profile: parallel ribs of a rounded, square or saw-toothed section."""
    d = c.dice
    x = c.roam(0.015)[0] + d.part(0, 1.0) * c.noise(d.each_key(), 20.0, 90.0, 1.5)
    period = d.log(5, 40)
    t = frac(x / period)
    steep = d.part(0.03, 0.25)
    square = smooth(0.0, steep, t) * (1 - smooth(0.5, 0.5 + steep, t))
    section = torch.where(d.odds(0.5) > 0, square, torch.where(d.odds(0.6) > 0, 0.5 + 0.5 * wave(t), t))
    c.fill(c.colour(0.25, 0.85))
    c.scale(0.4 + 0.6 * torch.lerp(section, torch.ones_like(section), d.part(0, 1)))
    c.light(section * period * d.part(0.05, 0.35), d.odds(0.5) * 0.3)
    fine = c.noise(d.each_key(), 1.0, 30.0, 0.7, d.log(1, 12), d.part(0, 3.1416))
    c.scale(1 + d.part(0.02, 0.12) * fine)


def knitted(c: Canvas) -> None:
    """Knitwear and wire mesh: columns of V-shaped loops, or a grid of crossing wires over a ground."""
    d = c.dice
    x, y = c.roam(0.03)
    x = x + d.part(0, 1.2) * c.noise(d.each_key(), 14.0, 80.0, 1.5)
    y = y + d.part(0, 1.2) * c.noise(d.each_key(), 14.0, 80.0, 1.5)
    wide, tall = d.log(6, 20), d.log(5, 16)
    u, slant = frac(x / wide) - 0.5, d.part(0.6, 1.4)
    loop = torch.cos(u.abs() * 4 * 3.1416 - 3.1416).clamp(-1, 1) * 0.5 + 0.5
    loop = loop * (0.55 + 0.45 * wave(y / tall + u.abs() * 2 * slant))
    thin = d.part(0.12, 0.3)
    across, along = (frac(x / wide) - 0.5) / thin, (frac(y / wide) - 0.5) / thin
    over = wave(x / wide * 0.5) * wave(y / wide * 0.5) * 0.4
    first, second = torch.sqrt((1 - across**2).clamp_min(0)), torch.sqrt((1 - along**2).clamp_min(0))
    wires = torch.maximum(first * (1 + over), second * (1 - over))
    height = torch.where(d.odds(0.5) > 0, loop, wires)
    c.fill(c.colour(0.03, 0.5))
    c.paint(smooth(0.1, 0.4, height), c.colour(0.3, 0.95))
    c.scale(0.5 + 0.5 * height.clamp(0, 1))
    c.light(height * d.part(0.5, 2.0))
    c.grain(d.part(0.03, 0.15))


def wood(c: Canvas) -> None:
    """Boards of wood: growth rings cut lengthwise, fine fibres and pores."""
    d = c.dice
    angle = c.lie(0.7, 0.03)
    x, y = turned(c.x, c.y, angle)
    x, y, long = x + d.each(-4000, 4000), y + d.each(-60, 60), d.log(60, 220)
    bend = hills(x / long, y / 40, d.part_key()) * d.part(4, 18)
    bend = bend + hills(x / 40, y / 9, d.part_key()) * d.part(0, 1)
    rings = torch.hypot(y + bend, d.part(2, 60)) / d.log(4, 14)
    year = torch.floor(rings)
    late = frac(rings) ** d.part(1.0, 4.0) * (0.6 + 0.4 * hashed(year, d.part_key()))
    c.fill(c.colour(0.35, 0.85, 0.25))
    c.paint(late * d.part(0.3, 0.9), c.image[:, :1, :, :1, :1] * d.part(0.3, 0.7).unsqueeze(2))
    fibre = c.noise(d.each_key(), 1.0, 30.0, 0.6, d.log(8, 40), angle)
    pores = c.noise(d.each_key(), 0.9, 8.0, 0.0, d.log(5, 14), angle)
    c.scale(1 + d.part(0.02, 0.12) * fibre - d.part(0, 0.25) * smooth(1.4, 2.4, pores))
