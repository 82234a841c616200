"""Made-up defects on good frames, drawn with numpy and OpenCV alone, for measuring on the box itself.

They are not real defects: they tell whether a recipe sees clear and faint changes at all, and which of two
recipes sees more of them. Nothing is fitted to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inspectord.errors import FitError
from inspectord.frame import Pixels

Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Point: TypeAlias = npt.NDArray[np.float64]  # x, y in pixels
Drawn: TypeAlias = tuple[Floats, Floats | None]  # cover (h, w) 0 to 1; content (h, w, c), None: a tone

CLEAR, FAINT = 1.0, 0.35  # strengths
LEAST_LEVELS = 40.0  # grey levels by which a clear defect differs, however flat the frame is
CONTRAST = 0.35  # by which it differs, of the region's own range of grey levels
TRIES = 8
SUBPIXEL_BITS = 4  # corners are drawn to a sixteenth of a pixel


def strike(pixels: Pixels, kind: str, strength: float, seed: int, where: Mask) -> tuple[Pixels, Mask]:
    """One defect on a copy of the frame, and the mask (h, w) of the pixels that it changed.

    pixels is uint8 (h, w, c); kind is one of KINDS; strength, above 0 up to 1, scales the contrast and not
    the shape; where (h, w) is the region that is looked at. Sizes go by that region, and no pixel outside
    it changes; inside, at least one always does. Equal arguments give equal results.
    Raises FitError where the arguments don't fit each other.
    """
    _check(pixels, kind, strength, where)
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    frame, side = pixels.astype(np.float32), float(np.sqrt(where.sum()))
    cover, content = _DRAWERS[kind](frame, where, side, rng)
    cover *= where
    if cover.max() < 0.5:  # what was drawn fell beside the region; a spot never does
        cover, content = _spot(frame, where, side, rng)
        cover *= where
    room = max(LEAST_LEVELS, CONTRAST * float(np.ptp(np.percentile(frame[where], (1, 99)))))
    if content is None or _difference(frame, content, cover) < room / 2:
        content = _toned(frame, cover, room, soft=kind == "smear", rng=rng)
    struck = np.rint(frame + strength * cover[..., None] * (content - frame)).clip(0, 255).astype(np.uint8)
    if np.array_equal(struck, pixels):  # fainter than half a grey level
        y, x = np.unravel_index(int(cover.argmax()), cover.shape)
        struck[y, x] ^= 1
    return struck, np.asarray((struck != pixels).any(axis=2))


def _check(pixels: Pixels, kind: str, strength: float, where: Mask) -> None:
    if kind not in KINDS:
        raise FitError(f"no synthetic defect {kind!r}; choose from {', '.join(KINDS)}")
    if not 0 < strength <= 1:
        raise FitError(f"a synthetic defect's strength is above 0 up to 1, got {strength:g}")
    if pixels.ndim != 3 or pixels.shape[:2] != where.shape:
        raise FitError(f"the region {where.shape} is not of the frame's size {pixels.shape}; give (h, w)")
    if not where.any():
        raise FitError("no pixel is looked at, so there is no place for a synthetic defect")


def _spot(frame: Floats, where: Mask, side: float, rng: np.random.Generator) -> Drawn:
    """A small dent, hole or drop: one solid tone."""
    radius = max(1.5, side * rng.uniform(0.012, 0.04))
    return _blob(where.shape, _somewhere(where, radius, rng), radius, rng), None


def _scratch(frame: Floats, where: Mask, side: float, rng: np.random.Generator) -> Drawn:
    """A thin line, slightly bent, from an eighth to a third of the region long."""
    length, turn = side * rng.uniform(0.12, 0.35), rng.uniform(0, np.pi)
    along = np.array((np.cos(turn), np.sin(turn)))
    bend = along[::-1] * (1, -1) * length * rng.uniform(-0.6, 0.6)
    steps = np.linspace(-0.5, 0.5, 24)[:, None]
    line = _somewhere(where, length / 4, rng) + steps * length * along + steps**2 * bend
    width, drawn = max(1, round(side * rng.uniform(0.004, 0.012))), _blank(where.shape)
    return _soft(cv2.polylines(drawn, [_corners(line)], False, 255, width, cv2.LINE_8, SUBPIXEL_BITS)), None


def _smear(frame: Floats, where: Mask, side: float, rng: np.random.Generator) -> Drawn:
    """A soft stain that fades out; the texture shows through."""
    radius = max(2.0, side * rng.uniform(0.05, 0.12))
    blob = _blob(where.shape, _somewhere(where, radius, rng), radius, rng)
    cover = cv2.GaussianBlur(blob, (0, 0), radius / 3)
    return np.asarray(cover / cover.max(), np.float32), None


def _patch(frame: Floats, where: Mask, side: float, rng: np.random.Generator) -> Drawn:
    """Something missing or in the wrong place: an area that shows another place of the frame."""
    radius = max(2.0, side * rng.uniform(0.04, 0.08))
    centre = _somewhere(where, radius, rng)
    cover = _blob(where.shape, centre, radius, rng)
    best, most = frame, 0.0
    for _ in range(TRIES):
        content = _moved(frame, centre - _somewhere(where, radius, rng))
        difference = _difference(frame, content, cover * where)
        if difference > most:
            best, most = content, difference
    return cover, best


def _chip(frame: Floats, where: Mask, side: float, rng: np.random.Generator) -> Drawn:
    """A bite out of an edge of the picture: one side's colour goes over to the other."""
    radius = max(2.0, side * rng.uniform(0.02, 0.05))
    grey = cv2.GaussianBlur(frame.mean(axis=2), (0, 0), 1 + side / 200)
    dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    steep = np.hypot(dx, dy)
    x, y = _point(where & (steep >= np.percentile(steep[where], 98)), rng).astype(int)
    across = np.array((dx[y, x], dy[y, x]), np.float64) / max(1e-6, float(steep[y, x]))
    taken = np.array((x, y)) + rng.choice((-1, 1)) * 2 * radius * across
    x_from, y_from = np.clip(taken, 0, (frame.shape[1] - 1, frame.shape[0] - 1)).astype(int)
    near = cv2.blur(frame, (1 + 2 * int(radius / 2),) * 2).reshape(frame.shape)
    colour = np.broadcast_to(near[y_from, x_from], frame.shape)
    return _blob(where.shape, np.array((x, y)), radius, rng), colour


def _print(frame: Floats, where: Mask, side: float, rng: np.random.Generator) -> Drawn:
    """Signs that don't belong there, and a blot beside them."""
    height = max(5.0, side * rng.uniform(0.05, 0.1))
    centre, blank = _somewhere(where, height, rng), _blank(where.shape)
    text = "".join(chr(code) for code in rng.integers(ord("A"), ord("Z") + 1, rng.integers(1, 4)))
    thick = max(1, round(height / 8))
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, max(1, round(height)), thick)
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    left, bottom = np.rint(centre + np.array((-wide / 2, high / 2))).astype(int).tolist()
    cv2.putText(blank, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_8)
    return np.maximum(_soft(blank), _blob(where.shape, centre, height / 4, rng)), None


_DRAWERS: dict[str, Callable[[Floats, Mask, float, np.random.Generator], Drawn]] = {
    "spot": _spot,
    "scratch": _scratch,
    "smear": _smear,
    "patch": _patch,
    "chip": _chip,
    "print": _print,
}
KINDS: tuple[str, ...] = tuple(_DRAWERS)


def _toned(frame: Floats, cover: Floats, room: float, *, soft: bool, rng: np.random.Generator) -> Floats:
    """Brighter or darker by room than what lies under the cover, whichever the grey scale leaves room for."""
    level = np.average(frame.reshape(-1, frame.shape[2]), axis=0, weights=cover.ravel()).astype(np.float32)
    up, down = 255 - float(level.max()), float(level.min())
    sign = rng.choice((-1, 1)) if min(up, down) >= room else (1 if up >= down else -1)
    return np.asarray((frame if soft else np.broadcast_to(level, frame.shape)) + sign * room, np.float32)


def _difference(frame: Floats, content: Floats, cover: Floats) -> float:
    """Mean difference in grey levels under the cover."""
    inside = cover >= 0.5
    return float(np.abs(content[inside] - frame[inside]).mean()) if inside.any() else 0.0


def _somewhere(where: Mask, margin: float, rng: np.random.Generator) -> Point:
    """A place in the region, margin pixels inside its border as far as it is that wide anywhere."""
    inside = cv2.copyMakeBorder(where.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    return _point(depth >= min(margin, float(depth.max())), rng)


def _point(among: Mask, rng: np.random.Generator) -> Point:
    y, x = np.unravel_index(rng.choice(np.flatnonzero(among)), among.shape)
    return np.array((x, y), np.float64)


def _blob(shape: tuple[int, ...], centre: Point, radius: float, rng: np.random.Generator) -> Floats:
    """A round but uneven area, longer than wide; 1 inside."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    uneven = np.ones_like(angles)
    for waves in (2, 3, 5):
        uneven += rng.uniform(-0.3, 0.3) / waves * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.6, 1)
    upright = np.column_stack((np.cos(angles), flat * np.sin(angles))) * uneven[:, None] * radius
    turned = upright @ np.array(((np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))))
    return _soft(cv2.fillPoly(_blank(shape), [_corners(centre + turned)], 255, cv2.LINE_8, SUBPIXEL_BITS))


def _corners(points: Point) -> npt.NDArray[np.int32]:
    return np.rint(points * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _blank(shape: tuple[int, ...]) -> Pixels:
    return np.zeros(shape, np.uint8)


def _soft(drawn: npt.NDArray[Any]) -> Floats:
    """0 to 1 of what is drawn in 255, without steps, as a lens would show it; 1 also where it is thin."""
    blurred = cv2.GaussianBlur(drawn.astype(np.float32) / 255, (3, 3), 0.6)
    return np.asarray(np.minimum(1, blurred / max(0.5, float(blurred.max()))), np.float32)


def _moved(frame: Floats, by: Point) -> Floats:
    """The frame moved by x, y pixels, mirrored at its borders, (h, w, c)."""
    moved = cv2.warpAffine(
        frame, np.array(((1, 0, by[0]), (0, 1, by[1]))), frame.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved, np.float32).reshape(frame.shape)
