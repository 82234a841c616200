"""The static part of the simulated product, drawn once per process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

HOLES = 6
# Radii as fractions of the frame's shorter side.
OUTER, BOLTS, HOLE, BORE, STEP = 0.43, 0.315, 0.038, 0.14, 0.215
FINE = 2  # drawn so many times larger, then averaged down


@dataclass(frozen=True, slots=True)
class Flange:
    """Grey images (height, width): uint8, but belt uint16 and light a float32 gain in 1/256."""

    metal: np.ndarray
    cover: np.ndarray  # 255 where the part hides the belt
    plain: np.ndarray  # the metal as it would be without bolt holes
    belt: np.ndarray
    light: np.ndarray

    def copied(self) -> Flange:
        """With a metal and a cover of its own, for a defect to change."""
        return replace(self, metal=self.metal.copy(), cover=self.cover.copy())

    @property
    def size(self) -> int:
        return int(min(self.metal.shape))

    @property
    def centre(self) -> np.ndarray:
        """(x, y) in pixels."""
        return np.array(self.metal.shape[::-1]) / 2

    def hole(self, number: int) -> np.ndarray:
        """Centre (x, y) of a bolt hole in pixels."""
        return self.at(2 * np.pi * number / HOLES, BOLTS)

    def at(self, angle: float, radius: float) -> np.ndarray:
        """(x, y) in pixels; radius as a fraction of the shorter side."""
        return self.centre + self.size * radius * np.array([np.cos(angle), np.sin(angle)])


def draw_flange(width: int, height: int) -> Flange:
    rng = np.random.default_rng(20_240)
    polar = _Polar(width * FINE, height * FINE)
    turned = _turned(polar, rng)
    solid = _stepped(turned, polar)
    plain = _engraved(solid, polar)
    drilled, cover = _drilled(plain, polar)
    belt = _shadowed(_belt(width, height, rng), cover, width, height)
    return Flange(
        metal=_down(drilled, width, height),
        cover=_down(cover, width, height),
        plain=_down(plain, width, height),
        belt=belt.astype(np.uint16),
        light=_light(width, height),
    )


class _Polar:
    """Radius (fraction of the shorter side) and angle of every pixel, each of shape (height, width)."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.size = min(width, height)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        self.x, self.y = x + 0.5 - width / 2, y + 0.5 - height / 2
        self.radius = np.hypot(self.x, self.y) / self.size
        self.angle = np.arctan2(self.y, self.x)

    def distance(self, angle: float, radius: float) -> np.ndarray:
        """From a point of the part, as a fraction of the shorter side."""
        x, y = self.size * radius * np.cos(angle), self.size * radius * np.sin(angle)
        return np.asarray(np.hypot(self.x - x, self.y - y) / self.size)


def _turned(polar: _Polar, rng: np.random.Generator) -> np.ndarray:
    """Fine rings of a lathe, and the two bright fans that such a surface shows under one lamp."""
    rings = rng.standard_normal(1024).astype(np.float32)
    noise = np.tile(rng.standard_normal((512, 512)).astype(np.float32), (1, 3))  # no seam at half a turn
    arcs = cv2.GaussianBlur(noise, (0, 0), 12, sigmaY=0.8)[:, 512:1024]
    step = polar.radius * 1023 / 0.75
    across = np.interp(step, np.arange(1024), cv2.GaussianBlur(rings[None], (0, 0), 1.2)[0])
    along = cv2.remap(
        arcs,
        ((polar.angle / (2 * np.pi) + 0.5) * 511).astype(np.float32),
        (polar.radius * 511 / 0.75).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    fan = np.abs(np.cos(polar.angle + 0.9)) ** 3
    return np.asarray(118 + 52 * fan + across * (7 + 5 * fan) + along * 60)


def _stepped(metal: np.ndarray, polar: _Polar) -> np.ndarray:
    """A raised hub: lower outside, with a lit and a shaded flank; bevels at the bore and the rim."""
    lit = np.cos(polar.angle + 2.2)  # the lamp stands upper left
    metal = metal - 14 * (polar.radius > STEP)
    metal = metal + 45 * lit * _band(polar.radius, STEP, 0.006)
    metal = metal - 55 * lit * _band(polar.radius, BORE + 0.006, 0.006)
    return np.asarray(metal + 60 * lit * _band(polar.radius, OUTER - 0.008, 0.008))


def _engraved(metal: np.ndarray, polar: _Polar) -> np.ndarray:
    """The part number, cut in: dark strokes with a lit lower right edge."""
    text = np.zeros((polar.height, polar.width), np.uint8)
    scale, thick = polar.size / 560, max(1, round(polar.size / 170))
    for line, row in (("FL-6", -0.285), ("A113", 0.325)):
        (wide, _), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
        at = (round(polar.width / 2 - wide / 2), round(polar.height / 2 + row * polar.size))
        cv2.putText(text, line, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    depth = text.astype(np.float32) / 255
    edge = np.roll(depth, (FINE, FINE), (0, 1)) * (1 - depth)
    return np.asarray(metal * (1 - 0.62 * depth) + 34 * edge)


def _drilled(metal: np.ndarray, polar: _Polar) -> tuple[np.ndarray, np.ndarray]:
    """Bolt holes with a countersink, and the bore; both show the belt in their shade."""
    inside = _soft(polar.radius < OUTER) * _soft(polar.radius > BORE)
    for number in range(HOLES):
        angle = 2 * np.pi * number / HOLES
        away = polar.distance(angle, BOLTS)
        side = (
            (polar.x - polar.size * BOLTS * np.cos(angle)) + (polar.y - polar.size * BOLTS * np.sin(angle))
        ) / (polar.size * HOLE)
        metal = metal + 48 * side * _band(away, HOLE + 0.007, 0.006)
        inside = inside * _soft(away > HOLE)
    return metal, inside * 255


def _belt(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A dark woven belt."""
    y, x = np.mgrid[0:height, 0:width]
    weave = 3 * np.sin(x * 2 * np.pi / 6) * np.sin(y * 2 * np.pi / 6)
    cloud = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 2) * 8
    return np.asarray(np.clip(40 + weave + cloud, 8, 90))


def _shadowed(belt: np.ndarray, cover: np.ndarray, width: int, height: int) -> np.ndarray:
    away = max(2, min(width, height) // 50)
    shade = cv2.GaussianBlur(_down(cover, width, height), (0, 0), away / 2).astype(np.float32) / 255
    return np.asarray(belt * (1 - 0.55 * np.roll(shade, (away, away), (0, 1))))


def _light(width: int, height: int) -> np.ndarray:
    """Brighter in the upper left, falling off by a fifth; gain in 1/256."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    fall = np.hypot(x / width - 0.35, y / height - 0.3)
    return np.asarray(256 * (1.08 - 0.22 * fall), np.float32)


def _band(distance: np.ndarray, middle: float, width: float) -> np.ndarray:
    return np.asarray(np.exp(-(((distance - middle) / width) ** 2)))


def _soft(inside: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 0.6 * FINE))


def _down(image: np.ndarray, width: int, height: int) -> np.ndarray:
    small = cv2.resize(
        np.clip(image, 0, 255).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
    )
    return np.asarray(np.rint(small).astype(np.uint8))
