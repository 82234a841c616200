"""Defects of the simulated product: each changes a part and returns its mask, uint8 (height, width) 0-255."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from inspectord.sources.flange import BORE, HOLE, HOLES, OUTER, Flange

Points = np.ndarray  # of shape (n, 2), (x, y) in pixels


def scratch(part: Flange, rng: np.random.Generator) -> np.ndarray:
    """A bright furrow with a dark flank, across the metal."""
    heading, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.3) * part.size
    path = _curve(_on_metal(part, rng), heading, length, rng.uniform(-0.5, 0.5))
    furrow = _stroke(part, path, max(1, part.size // 256))
    flank = _stroke(part, path + max(1.0, part.size / 256), max(1, part.size // 256))
    _add(part, flank, -rng.uniform(30, 55))
    _add(part, furrow, rng.uniform(55, 95))
    return np.asarray(np.minimum(furrow, part.cover))


def stain(part: Flange, rng: np.random.Generator) -> np.ndarray:
    """A dark drop of oil with soft, uneven edges."""
    middle, spread = _on_metal(part, rng), rng.uniform(0.015, 0.035) * part.size
    mask = _canvas(part)
    for _ in range(4):
        at = middle + rng.normal(0, spread * 0.6, 2)
        axes = rng.uniform(0.5, 1.1, 2) * spread
        cv2.ellipse(mask, (_whole(at), _whole(axes * 2), rng.uniform(0, 180)), 255, -1, cv2.LINE_AA)
    mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), max(0.8, spread / 6)))
    mask = np.asarray(np.minimum(mask, part.cover))
    _add(part, mask, -rng.uniform(32, 60))
    return mask


def missing_hole(part: Flange, rng: np.random.Generator) -> np.ndarray:
    """One of the bolt holes was never drilled."""
    at = part.hole(int(rng.integers(HOLES)))
    mask = _canvas(part)
    cv2.circle(mask, _whole(at), round(part.size * (HOLE + 0.018)), 255, -1)
    filled = mask > 0
    part.metal[filled] = part.plain[filled]
    part.cover[filled] = 255
    hole = _canvas(part)
    cv2.circle(hole, _whole(at), round(part.size * HOLE), 255, -1)
    return hole


def chip(part: Flange, rng: np.random.Generator) -> np.ndarray:
    """A piece broken out of the rim, with a bright rough edge."""
    angle, width, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.07, 0.16), rng.uniform(0.02, 0.05)
    turns = np.linspace(angle - width / 2, angle + width / 2, 7)
    bite = OUTER - depth * np.sin(np.linspace(0.15, np.pi - 0.15, 7)) * rng.uniform(0.6, 1.2, 7)
    inner = [part.at(turn, radius) for turn, radius in zip(turns, bite, strict=True)]
    outer = [part.at(turn, OUTER + 0.02) for turn in turns[::-1]]
    broken = _canvas(part)
    cv2.fillPoly(broken, [_fixed(np.array(inner + outer))], 255, cv2.LINE_AA, 4)
    mask = np.asarray(np.minimum(broken, part.cover))
    rough = np.minimum(_stroke(part, np.array(inner), max(2, part.size // 110)), part.cover)
    _add(part, rough, rng.uniform(50, 80))
    part.cover[:] = np.minimum(part.cover, 255 - broken)
    return mask


def fibre(part: Flange, rng: np.random.Generator) -> np.ndarray:
    """A hair or thread lying on the part."""
    heading, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.4) * part.size
    path = _curve(_on_metal(part, rng), heading, length, rng.uniform(1.0, 2.6) * rng.choice([-1, 1]))
    mask = _stroke(part, path, max(1, part.size // 200))
    grey = 30.0 if rng.random() < 0.6 else 235.0
    share = mask.astype(np.float32) / 255
    part.metal[:] = np.rint(part.metal * (1 - share) + grey * share).astype(np.uint8)
    part.cover[:] = np.maximum(part.cover, mask)
    return mask


DEFECTS: dict[str, Callable[[Flange, np.random.Generator], np.ndarray]] = {
    "scratch": scratch,
    "stain": stain,
    "missing_hole": missing_hole,
    "chip": chip,
    "fibre": fibre,
}


def _on_metal(part: Flange, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(part.at(rng.uniform(0, 2 * np.pi), rng.uniform(BORE + 0.05, OUTER - 0.06)))


def _curve(middle: np.ndarray, heading: float, length: float, bend: float) -> Points:
    """An arc through middle whose heading turns by bend from end to end, in radians."""
    along = np.linspace(-0.5, 0.5, 24)
    headings = heading + bend * along
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * length / 23
    path = np.cumsum(steps, axis=0)
    return np.asarray(path - path[len(path) // 2] + middle)


def _canvas(part: Flange) -> np.ndarray:
    return np.zeros(part.metal.shape, np.uint8)


def _stroke(part: Flange, path: Points, thickness: int) -> np.ndarray:
    mask: np.ndarray = _canvas(part)
    cv2.polylines(mask, [_fixed(path)], False, 255, thickness, cv2.LINE_AA, 4)
    return mask


def _fixed(points: Points) -> np.ndarray:
    """Sixteenths of a pixel, as OpenCV's shift=4 reads them."""
    return np.asarray(np.rint(points * 16).astype(np.int32))


def _whole(point: np.ndarray) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _add(part: Flange, mask: np.ndarray, levels: float) -> None:
    changed = part.metal + mask.astype(np.float32) * (levels / 255)
    part.metal[:] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
