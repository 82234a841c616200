"""Parts on a ground: moulded, stamped, turned, threaded; another place, grain and light in every instance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.pretrain.canvas import TURN, Canvas, box, cover, frac, hashed, profile, smooth, turned, wave


def _ground(c: Canvas, low: float = 0.03, high: float = 0.9) -> None:
    """A plain belt, table or void, with a little texture of its own."""
    d = c.dice
    c.fill(c.colour(low, high, 0.25))
    texture = c.noise(d.each_key(), 1.5, 40.0, 0.8, d.log(1, 8), d.part(0, math.pi))
    c.scale(1 + d.part(0, 1) ** 3 * 0.2 * texture)


def _shadow(c: Canvas, distance: Tensor) -> None:
    """A soft dark rim on the ground around the part."""
    reach = c.dice.log(2, 12)
    c.scale(1 - c.dice.part(0, 0.6) * (1 - distance.clamp_min(0) / reach).clamp(0, 1) ** 2)


def _outline(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the part's outline: a lobed disc or a rounded box, some with a notch."""
    d, half = c.dice, c.size / 2
    radius, lobes = half * d.part(0.5, 0.95), d.count(2, 8)
    swing = d.part(0, 0.14) * d.odds(0.5)
    disc = torch.hypot(x, y) - radius * (1 + swing * torch.cos(torch.atan2(y, x) * lobes))
    wide, tall = half * d.part(0.5, 0.95), half * d.part(0.3, 0.95)
    block = box(x, y, wide, tall, torch.minimum(wide, tall) * d.part(0.05, 0.9))
    body = torch.where(d.odds(0.5) > 0, disc, block)
    deep, high = half * d.part(0.1, 0.3), half * d.part(0.05, 0.2)
    notch = box(x - radius, y - half * d.part(-0.3, 0.3), deep, high, half * 0.04)
    return torch.where(d.odds(0.4) > 0, torch.maximum(body, -notch), body)


def moulded(c: Canvas) -> None:
    """Moulded and cast parts: a rounded body with ribs, bosses, pockets, smooth normals and an own skin."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.04, 0.04, 0.15)
    body = _outline(c, x, y)
    edge, skin = d.log(3, 20), c.noise(d.each_key(), d.log(1, 3), d.log(6, 40), 0.8)
    height = edge * d.part(0.4, 1.0) * torch.sqrt((-body / edge).clamp(0, 1))
    for _ in range(3):
        px, py = half * d.part(-0.55, 0.55), half * d.part(-0.55, 0.55)
        boss = torch.hypot(x - px, y - py) - half * d.part(0.06, 0.3)
        height = height + d.part(-4, 4) * smooth(d.log(1, 5), -1.0, boss)
    spokes, angle = d.count(2, 8), torch.atan2(y, x)
    rib = torch.sin(angle * spokes / 2).abs() * torch.hypot(x, y) * 2 / spokes - half * d.part(0.02, 0.05)
    height = height + d.odds(0.4) * d.part(-3, 4) * smooth(1.5, -1.0, rib)
    long, thick = half * d.part(0.2, 1), half * d.part(0.03, 0.12)
    bar = box(x, y - half * d.part(-0.4, 0.4), long, thick, half * 0.03)
    height = height + d.part(-3, 4) * smooth(1.5, -1.5, bar)
    _ground(c)
    _shadow(c, body)
    c.paint(cover(body, 1.5), c.colour(0.12, 0.9))
    c.light((height + d.log(0.03, 0.5) * skin) * cover(body - 1, 2.0), d.part(0, 1) ** 2 * 0.5, d.log(3, 20))


def stamped(c: Canvas) -> None:
    """Stamped and milled plates: washers, gears, brackets with holes, flat faces with a grain of tooling."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.04, 0.04, 0.4)
    body, angle, r = _outline(c, x, y), torch.atan2(y, x), torch.hypot(x, y)
    teeth, radius = d.count(8, 40), half * d.part(0.6, 0.92)
    flank = torch.tanh(torch.cos(angle * teeth) * d.part(0.8, 4)) * radius * 2.2 / teeth
    body = torch.where(d.odds(0.35) > 0, r - radius + 0.5 * flank, body)
    bore = r - half * d.part(0.1, 0.4) * d.odds(0.7)
    bolts, ring = d.count(3, 8), half * d.part(0.35, 0.6)
    folded = (frac(angle / TURN * bolts) - 0.5) * TURN / bolts
    bolt = torch.hypot(r * torch.cos(folded) - ring, r * torch.sin(folded)) - half * d.part(0.04, 0.1)
    solid = torch.maximum(body, -torch.where(d.odds(0.5) > 0, torch.minimum(bore, bolt), bore))
    _ground(c)
    _shadow(c, solid)
    c.paint(cover(solid), c.colour(0.25, 0.9, 0.15))
    step = smooth(1.0, -1.0, r - half * d.part(0.3, 0.7)) * d.odds(0.5)
    c.light((smooth(0.0, -d.log(1.5, 6), solid) + step) * d.part(0.6, 2.5), d.part(0, 0.3))
    fine = c.noise(d.each_key(), 0.9, 20.0, 0.5, d.log(1, 25), d.part(0, math.pi))
    sweep = wave(angle / TURN * 2 + d.part(0, 1)) * d.part(0, 0.2) * d.odds(0.4)
    c.scale(1 + cover(solid) * (d.part(0.02, 0.15) * fine + sweep))


def screws(c: Canvas) -> None:
    """Screws, bolts, pins and rods, lying at any angle: head, shank, thread and point."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.08, 0.02, 0.85)
    long, thick = half * d.part(0.6, 0.95), half * d.part(0.06, 0.2)
    x = x + long * 0.1
    pitch, depth = thick * d.part(0.3, 0.8), d.part(0.06, 0.25) * d.odds(0.85)
    start = long * d.part(-0.6, 0.3)
    thread = smooth(start, start + pitch, x) * depth
    shank = thick * (1 - thread * (0.5 + 0.5 * wave(x / pitch + y / thick * 0.25)))
    point = long * d.part(0.02, 0.4)
    shank = shank * ((long - x) / point).clamp(0, 1) ** d.part(0.4, 1.0)
    head, wide = long * d.part(0.1, 0.35), thick * d.part(1.0, 2.4)
    flare = torch.where(d.odds(0.5) > 0, 1.0, 1 - ((x + long) / head).clamp(0, 1) * 0.6)
    radius = torch.where(x < -long + head, wide * flare, shank)
    inside = torch.minimum(radius - y.abs(), torch.minimum(x + long, long - x))
    _ground(c)
    _shadow(c, -inside)
    mask = cover(-inside, 1.2)
    c.paint(mask, c.colour(0.15, 0.85, 0.2))
    bulge = torch.sqrt((radius.clamp_min(0.1) ** 2 - y * y).clamp_min(0)) * d.part(0.3, 0.8)
    facets = (frac(y / wide * 1.5) - 0.5).abs() * wide * 0.4
    bulge = torch.where((x < -long + head) & (d.odds(0.4) > 0), facets, bulge)
    c.light(bulge * mask, d.part(0, 0.6), d.log(3, 20))
    c.scale(1 + mask * d.part(0.02, 0.12) * c.noise(d.each_key(), 1.0, 12.0, 0.5))


def pills(c: Canvas) -> None:
    """Tablets and capsules, one large or a blister of many: two shells, a score line, a specked coating."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.06, 0.05, 0.5)
    single = d.odds(0.5)
    long = torch.where(single > 0, half * d.part(0.5, 0.85), half * d.part(0.14, 0.3))
    thin = long * torch.where(d.odds(0.35) > 0, 1.0, d.part(0.35, 0.8))
    period = torch.where(single > 0, 1e4, 2.0) * long * d.part(1.15, 1.6)
    tall = torch.where(single > 0, period, 2 * thin * d.part(1.15, 1.6))
    x, y = (frac(x / period + 0.5) - 0.5) * period, (frac(y / tall + 0.5) - 0.5) * tall
    capsule = torch.hypot(x.abs().sub(long - thin).clamp_min(0), y) - thin
    oval = (torch.sqrt((x / long) ** 2 + (y / thin) ** 2) - 1) * thin
    body = torch.where(d.odds(0.5) > 0, capsule, oval)
    _ground(c, 0.02, 0.5)
    _shadow(c, body)
    mask = cover(body, 1.5)
    c.paint(mask, c.colour(0.3, 0.95, 0.5))
    c.paint(mask * cover(x - long * d.part(-0.2, 0.2)) * d.odds(0.5), c.colour(0.2, 0.95, 0.6))
    speck = smooth(1.6, 2.6, c.noise(d.each_key(), 1.2, 6.0, 0.3)) * d.part(0, 0.5) * d.odds(0.5)
    c.scale(1 - mask * speck)
    score = smooth(2.0, 0.0, x.abs()) * d.odds(0.3) * 1.5
    dome = torch.sqrt((-body / thin).clamp(0, 1)) * thin * d.part(0.2, 0.7)
    c.light((dome - score) * mask, d.part(0, 0.7), d.log(4, 30))
    c.grain(d.part(0.005, 0.04))


def cables(c: Canvas) -> None:
    """Bundles of parallel cables, ropes and hoses: coloured strands, some twisted or braided."""
    d = c.dice
    angle = c.lie(0.6, 0.03)
    x, y = turned(c.x, c.y, angle)
    x, y = x + d.each(-4000, 4000), y + d.each(-2, 2)
    y = y + d.part(0, 3) * profile(x / 60, d.each_key())
    wide = d.log(7, 40)
    j, v = torch.floor(y / wide), frac(y / wide) * 2 - 1
    around = torch.asin(v.clamp(-1, 1)) / math.pi
    lay = d.log(0.4, 2.5) * wide
    strand = wave(x / lay + around * d.count(1, 2))
    cross = torch.maximum(strand, wave(x / lay - around * d.count(1, 2)))
    relief = torch.where(d.odds(0.5) > 0, strand, cross) * d.odds(0.65)
    _ground(c, 0.02, 0.4)
    inside = cover((v.abs() - 0.97) * wide / 2)
    pick = hashed(j, d.part_key())
    c.paint(inside, c.colour())
    c.paint(inside * (pick < 0.5), c.colour())
    c.paint(inside * (pick < 0.2), c.colour())
    c.scale(1 + d.part(0.05, 0.35) * relief)
    bulge = torch.sqrt((1 - v * v).clamp_min(0)) * wide * 0.35
    c.light(bulge + relief * wide * d.part(0.01, 0.04), d.part(0, 0.5), d.log(3, 20))
    c.grain(d.part(0.01, 0.08))


def wires(c: Canvas) -> None:
    """A cut cable from its end: sheath, coloured insulation, bare strands packed in every core."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.03, 0.05, 0.2)
    outer, cores = half * d.part(0.7, 0.95), d.count(1, 5)
    ring = torch.where(cores > 1, outer * 0.5, 0.0)
    angle, r = torch.atan2(y, x), torch.hypot(x, y)
    number = torch.where(cores > 1, torch.floor(angle / TURN * cores), 0.0)
    folded = (frac(angle / TURN * cores) - 0.5) * TURN / cores
    core = torch.where(cores > 2, ring * torch.sin(math.pi / cores.clamp_min(2)), outer * 0.46)
    core = torch.where(cores > 1, core, outer * 0.75) * d.part(0.82, 0.98)
    u, v = r * torch.cos(folded) - ring, r * torch.sin(folded)
    u, v = torch.where(cores > 1, u, x), torch.where(cores > 1, v, y)
    jacket, copper = torch.hypot(u, v) - core, torch.hypot(u, v) - core * d.part(0.5, 0.75)
    _ground(c, 0.02, 0.95)
    sheath = r - outer
    c.paint(cover(sheath, 1.5), c.colour(0.1, 0.9))
    c.paint(cover(jacket, 1.5), c.colour(0.1, 0.9, 0.5))
    hue = frac(number * 0.377 + 0.5)
    c.paint(cover(jacket, 1.5) * (hue < 0.4), c.colour(0.1, 0.9, 0.5))
    strand, shift = core * d.part(0.1, 0.22), d.each(0, 9)
    u, v = turned(u + shift, v, shift)
    row = torch.floor(v / strand / 0.866)
    a = (frac(u / strand + torch.remainder(row, 2) * 0.5) - 0.5) * 2
    b = (frac(v / strand / 0.866) - 0.5) * 1.732
    dome = torch.sqrt((1 - a * a - b * b).clamp_min(0))
    inside = cover(copper, 1.5)
    c.paint(inside, c.colour(0.3, 0.85, 0.4))
    c.scale(1 - inside * (1 - dome) * d.part(0.3, 0.8))
    steps = smooth(1.0, -2.5, sheath) * 1.5 + smooth(1.0, -2.0, jacket)
    c.light(inside * dome * strand * 0.3 + steps, d.part(0, 0.4))
    c.grain(d.part(0.01, 0.08))


def turning(c: Canvas) -> None:
    """Turned parts and mouths of bottles from above: concentric steps, tool marks, light along the turn."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.04, 0.0, 1.0)
    r, angle = torch.hypot(x, y), torch.atan2(y, x)
    outer = half * d.part(0.65, 1.1)
    body = torch.maximum(r - outer, outer * d.part(0, 0.5) * d.odds(0.7) - r)
    bands, smoothly = r / outer * d.count(3, 9), profile(r / outer * d.part(4, 12), d.part_key())
    level = torch.lerp(hashed(torch.floor(bands), d.part_key()) * 2 - 1, smoothly, d.odds(0.5))
    _ground(c, 0.02, 0.7)
    _shadow(c, body)
    mask = cover(body, 1.5)
    c.paint(mask, c.colour(0.3, 0.85, 0.2))
    c.paint(mask * smooth(0.1, 0.3, level) * d.part(0, 1), c.colour(0.05, 0.95, 0.2))
    marks = profile(r / d.log(1, 4), d.each_key()) * d.part(0.02, 0.15)
    sweep = d.part(0, 0.35) * wave((angle + d.each(0, 0.1)) / TURN * 2 + d.part(0, 1))
    c.scale(1 + mask * (marks + sweep * d.odds(0.7)))
    c.light((level * d.part(0, 2.5) + smooth(0.0, -3.0, body) * 2) * mask, d.part(0, 0.5), d.log(3, 20))
    c.grain(d.part(0.01, 0.06))
