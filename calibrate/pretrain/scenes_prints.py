"""Drawn structures on a part: prints, labels, boards, cells; every instance is slightly out of place."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch
from torch import Tensor

from calibrate.pretrain.canvas import Canvas, box, cells, cover, frac, hashed, hashed2, profile, smooth

_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)
_TALL, _WIDE = 48, 36


@functools.cache
def _glyphs(device: torch.device) -> Tensor:
    """Signed distances to the strokes, pixels of a 48 x 36 cell, flat (fonts * letters * 48 * 36)."""
    drawn = []
    for font in _FONTS:
        for letter in _LETTERS:
            cell = np.zeros((_TALL, _WIDE), np.uint8)
            cv2.putText(cell, letter, (5, 40), font, 1.25, 255, 4)
            inside = cv2.distanceTransform(cell, cv2.DIST_L2, 5)
            drawn.append(cv2.distanceTransform(255 - cell, cv2.DIST_L2, 5) - inside)
    return torch.from_numpy(np.stack(drawn).astype(np.float32)).reshape(-1).to(device)


def lettering(x: Tensor, y: Tensor, tall: Tensor, letter: Tensor, font: Tensor) -> Tensor:
    """Signed distance (pixels) to a letter in a cell of height tall; x, y from the cell's corner, 0..1."""
    number = torch.floor(letter * len(_LETTERS)) + len(_LETTERS) * torch.floor(font)
    column, row = (x * _WIDE).clamp(0, _WIDE - 1).long(), (y * _TALL).clamp(0, _TALL - 1).long()
    index = (number.long() * _TALL + row) * _WIDE + column
    return _glyphs(x.device)[index] * (tall / _TALL)


def text(c: Canvas) -> None:
    """Lines of print on a label or straight on the part; one is a serial number, new in every instance."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.03, 0.02, 0.05)
    tall = d.log(9, 30)
    wide, line = tall * d.part(0.62, 0.85), tall * d.part(1.15, 1.8)
    i, j = torch.floor(x / wide), torch.floor(y / line)
    fixed, serial = hashed2(i, j, d.part_key()), hashed2(i, j, d.each_key())
    letter = torch.where(j == d.count(-2, 1), serial, fixed)
    v = frac(y / line) * line / tall
    ink = cover(lettering(frac(x / wide), v, tall, letter, d.part(0, 2.999)) - d.part(-0.5, 0.4))
    reach = half / wide * (0.4 + 0.5 * hashed(j, d.part_key()))
    ink = ink * (v < 1) * ((i + 0.5).abs() < reach) * (hashed2(i, j, d.part_key()) > 0.12)
    label = box(x, y, half * d.part(0.7, 1.2), half * d.part(0.6, 1.2), 4.0)
    c.fill(c.colour())
    c.scale(1 + d.part(0, 0.12) * c.noise(d.each_key(), 1.2, 30.0, 0.8, d.log(1, 10), d.part(0, 3.1416)))
    c.paint(cover(label) * d.odds(0.6), c.colour(0.5, 0.98))
    c.paint(cover((label + 4).abs() - 1) * d.odds(0.4), c.colour(0.02, 0.4))
    c.paint(ink * (label < -6) * d.part(0.7, 1.0), c.colour(0.02, 0.5, 0.5))


def inks(c: Canvas) -> None:
    """Halftone dots, stripes, checks and bar codes in two inks."""
    d, half = c.dice, c.size / 2
    x, y = c.place(0.04, 0.02)
    period = d.log(4, 26)
    u, v = x / period, y / period
    tone = 0.5 + 0.35 * profile(x / 60, d.part_key()) * profile(y / 60, d.part_key())
    dots = torch.hypot(frac(u) - 0.5, frac(v) - 0.5) - 0.2 - 0.3 * tone
    stripes = (frac(u) - 0.5).abs() - d.part(0.1, 0.4)
    checks = torch.minimum(0.5 - (frac(u) - 0.5).abs(), 0.5 - (frac(v) - 0.5).abs())
    checks = torch.where(torch.remainder(torch.floor(u) + torch.floor(v), 2) > 0, checks, -checks)
    bars = torch.where(hashed(torch.floor(u * 3), d.part_key()) < 0.5, -0.1, 0.1)
    kind = d.part(0, 4)
    shape = torch.where(kind < 1, dots, torch.where(kind < 2, stripes, torch.where(kind < 3, checks, bars)))
    c.fill(c.colour(0.4, 0.98))
    ink = cover(shape * period + 0.3 * c.noise(d.each_key(), 1.5, 6.0, 0.5), d.part(1.0, 2.0))
    c.paint(ink * d.part(0.5, 1.0), c.colour(0.02, 0.7, 0.5))
    patch = box(x, y, half * d.part(0.5, 1.3), half * d.part(0.5, 1.3), period)
    c.paint(cover(-patch) * d.odds(0.5), c.colour(0.4, 0.98))
    c.paint(cover(patch.abs() - 1.5) * d.odds(0.4), c.colour(0.02, 0.6, 0.5))
    c.grain(d.part(0.01, 0.08), 1.2, 20.0)


def board(c: Canvas) -> None:
    """Circuit boards: tracks on a grid, pads with holes, chips with pins, passive parts."""
    d = c.dice
    x, y = c.place(0.03, 0.015, 0.0, 0.85)
    pitch = d.log(7, 18)
    u, v = x / pitch, y / pitch
    i, j, du, dv = torch.floor(u), torch.floor(v), frac(u) - 0.5, frac(v) - 0.5
    run, thick = d.count(2, 6), d.part(0.08, 0.2)
    across = hashed2(torch.floor((i + 3 * j) / run), j, d.part_key()) < 0.5
    down = hashed2(i, torch.floor((j + 2 * i) / run), d.part_key()) < 0.4
    track = torch.minimum(torch.where(across, dv.abs(), 1.0), torch.where(down, du.abs(), 1.0)) - thick
    pad = torch.hypot(du, dv) + torch.where(hashed2(i, j, d.part_key()) < d.part(0.08, 0.3), 0.0, 9.0)
    c.fill(c.colour(0.1, 0.5, 0.5))
    copper = c.colour(0.2, 0.8, 0.5)
    c.paint(cover(track * pitch) * d.part(0.4, 1.0), copper)
    c.paint(cover((pad - 0.38) * pitch), c.colour(0.6, 0.95, 0.3))
    c.paint(cover((pad - 0.15) * pitch), c.colour(0.02, 0.2, 0.2))
    height = smooth(0.5, -0.5, track * pitch) * 0.3 + smooth(1.0, -2.0, (pad - 0.38) * pitch) * 0.6
    for _ in range(4):
        height = torch.maximum(height, _chip(c, x, y, pitch))
    c.light(height, d.part(0, 0.3))
    c.grain(d.part(0.01, 0.06))


def _chip(c: Canvas, x: Tensor, y: Tensor, pitch: Tensor) -> Tensor:
    """A black or ceramic box with two rows of pins, placed with its own tolerance; its height, pixels."""
    d, half = c.dice, c.size / 2
    x = x - half * d.part(-0.75, 0.75) - d.each(-0.8, 0.8)
    y = y - half * d.part(-0.75, 0.75) - d.each(-0.8, 0.8)
    swap = d.odds(0.5) > 0
    x, y = torch.where(swap, y, x), torch.where(swap, x, y)
    long, short = pitch * d.part(0.5, 3.0), pitch * d.part(0.4, 1.3)
    body = box(x, y, long, short, 1.0)
    pins = box((frac(x / pitch * 2) - 0.5) * pitch / 2, y, pitch * 0.13, short + pitch * 0.35, pitch * 0.05)
    pins = torch.maximum(pins, x.abs() - long + 1)
    c.paint(cover(pins), c.colour(0.6, 0.95, 0.1))
    c.paint(cover(body), c.colour(0.03, 0.6, 0.2))
    mark = cover(box(x, y, long * 0.6, short * 0.25, 1.0)) * d.odds(0.5)
    c.paint(mark, c.colour(0.5, 0.95, 0.1))
    return torch.maximum(smooth(1.0, -1.5, body) * 1.6, smooth(0.5, -1.0, pins) * 0.8)


def solar(c: Canvas) -> None:
    """Solar cells: crystal grains, fine fingers, busbars, gaps between cells, darker towards the edges."""
    d = c.dice
    x, y = c.place(0.03, 0.01, 0.0, 0.95)
    cell = c.size * d.log(0.35, 1.05)
    u, v = frac(x / cell) - 0.5, frac(y / cell) - 0.5
    grain = d.log(8, 40)
    shift = d.each(0, 4000)
    _, _, own = cells((x + shift) / grain, (y + shift) / grain / d.part(1, 2), d.part_key(), d.part(0.8, 1.0))
    c.fill(c.colour(0.12, 0.7, 0.4))
    c.scale(1 + d.part(0, 0.35) * (own * 2 - 1) + d.part(0.02, 0.15) * c.noise(d.each_key(), 3.0, 60.0, 1.5))
    rim = torch.maximum(u.abs(), v.abs()) * 2
    c.scale(1 - d.part(0, 0.5) * smooth(0.7, 1.0, rim))
    line = c.colour(0.02, 0.95, 0.1)
    fingers = d.count(10, 30)
    c.paint(cover(((frac(u * fingers) - 0.5).abs() * cell / fingers) - 0.3) * d.part(0.1, 0.6), line)
    bars = d.count(2, 4)
    c.paint(cover((frac((v + 0.5) * bars) - 0.5).abs() * cell / bars - cell * d.part(0.006, 0.02)), line)
    gap = box(u * cell, v * cell, cell * 0.49, cell * 0.49, cell * d.part(0, 0.12))
    c.paint(cover(-gap), c.colour(0.02, 0.95, 0.1))
    c.grain(d.part(0.01, 0.08))
