"""The simulated line's product: a turned flange with six bolt holes and an engraved number.

Everything random of a part comes from numpy's generator seeded with (seed, number), so that a part and its
defect are the same on every machine and in every order of rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from inspectord.frame import Pixels
from inspectord.sources.defects import DEFECTS
from inspectord.sources.flange import Flange, draw_flange

JITTER_PX = 1.0
JITTER_DEG = 0.5
NOISE_LEVELS = 2.0  # standard deviation of the sensor noise, grey levels
GOOD = "none"


@dataclass(frozen=True, slots=True)
class RenderedPart:
    """pixels: uint8 (height, width, 1); mask: bool (height, width), True on the defect; defect: its name."""

    pixels: Pixels
    defect: str
    mask: np.ndarray


def truth(seed: int, number: int, defect_rate: float) -> str:
    """The defect of a part, or "none" for a good one, without rendering it."""
    return _draw_truth(_generator(seed, number), defect_rate)


def render_part(seed: int, number: int, width: int, height: int, defect_rate: float) -> RenderedPart:
    """One part as the camera sees it: posed with jitter, lit from the upper left, with sensor noise."""
    rng = _generator(seed, number)
    defect = _draw_truth(rng, defect_rate)
    good = _flange(width, height)
    part, mask = good, np.zeros((height, width), np.uint8)
    if defect != GOOD:
        part = good.copied()
        mask = DEFECTS[defect](part, rng)
    pose = _pose(rng, width, height)
    pixels = _exposed(_on_belt(part, pose), good.light, rng)
    return RenderedPart(pixels[:, :, np.newaxis], defect, _moved(mask, pose) > 64)


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number])


def _draw_truth(rng: np.random.Generator, defect_rate: float) -> str:
    is_defective, kind = rng.random() < defect_rate, int(rng.integers(len(DEFECTS)))
    return list(DEFECTS)[kind] if is_defective else GOOD


@lru_cache(maxsize=4)
def _flange(width: int, height: int) -> Flange:
    return draw_flange(width, height)


def _pose(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Rotation about the centre, then a shift; affine, of shape (2, 3)."""
    angle_deg, dx, dy = rng.uniform(-1, 1, 3) * (JITTER_DEG, JITTER_PX, JITTER_PX)
    pose = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, 1.0))
    pose[:, 2] += (dx, dy)
    return pose


def _moved(image: np.ndarray, pose: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return np.asarray(cv2.warpAffine(image, pose, (width, height), flags=cv2.INTER_LINEAR))


def _on_belt(part: Flange, pose: np.ndarray) -> np.ndarray:
    """The posed part over the belt, uint16 of shape (height, width)."""
    cover = _moved(part.cover, pose).astype(np.uint16)
    metal = _moved(part.metal, pose).astype(np.uint16)
    return np.asarray((metal * cover + part.belt * (255 - cover)) // 255)


def _exposed(scene: np.ndarray, light: np.ndarray, rng: np.random.Generator) -> Pixels:
    """Light and sensor; light is a gain in 1/256."""
    height, width = scene.shape
    flicker = 1 + 0.01 * rng.uniform(-1, 1)
    grain = rng.standard_normal((height, width), np.float32) * NOISE_LEVELS * flicker
    lit = scene.astype(np.float32) * light
    return np.asarray(np.clip(np.rint(lit * (flicker / 256) + grain), 0, 255).astype(np.uint8))
