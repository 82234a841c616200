"""The frames of a comparison: which teach, which are held out, and the held-out ones with made-up defects."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from calibrate.evaluation import GOOD
from calibrate.images import GOOD_NAMES, MINIMUM_GOOD_FRAMES, GoodFrames, collect_good_frames
from calibrate.options import FitOptions
from calibrate.progress import Progress
from calibrate.region import Mask, make_region
from calibrate.synthetic import CLEAR, FAINT, KINDS, strike
from inspectord.errors import FitError, SourceError
from inspectord.frame import Pixels, letterbox_inner
from inspectord.sources.files import list_images, read_image

STRENGTHS = {"clear": CLEAR, "faint": FAINT}
HELD_OUT, MOST_HELD_OUT = 4, 100  # one frame of so many; beyond, the false rejects hardly get more certain
STRIKES = 60  # of each strength, ten of each family: a share found is known within 13 points
MOST_STRUCK_PIXELS = 400_000_000  # of each strength; fewer strikes on large frames, for the disk and the time


@dataclass(frozen=True)
class Split:
    """Good frames parted."""

    teaching: GoodFrames
    held_out: tuple[Path, ...]  # the operator's files
    samples: Path  # test/good, test/clear-spot ..., ground_truth: what evaluate takes
    strikes: int  # of each strength


def split(options: FitOptions, seed: int, work: Path, progress: Progress) -> Split:
    """Hold out a seeded share of the good frames, and strike them below work.

    Raises FitError where too few frames would be left to teach, and what collect_good_frames raises.
    """
    good = collect_good_frames(options.folders, options.letterbox, options.skip_bad, progress)
    chosen = _chosen(len(good), seed)
    teaching = tuple(good.frames[index] for index in sorted(set(range(len(good))) - set(chosen)))
    strikes = _strike(good, chosen, options, seed, work / "samples", progress)
    paths = tuple(good.frames[index].path for index in chosen)
    return Split(replace(good, frames=teaching), paths, work / "samples", strikes)


def _chosen(frames: int, seed: int) -> list[int]:
    count = min(frames // HELD_OUT, MOST_HELD_OUT)
    if frames - count < MINIMUM_GOOD_FRAMES:
        raise FitError(
            f"{frames} different good images; a comparison needs at least "
            f"{MINIMUM_GOOD_FRAMES * HELD_OUT // (HELD_OUT - 1)}: one of {HELD_OUT} is held out to "
            f"measure with, {MINIMUM_GOOD_FRAMES} must be left to teach; grab more with `calibrate capture`"
        )
    return sorted(np.random.default_rng(seed).permutation(frames)[:count].tolist())


def _strike(
    good: GoodFrames, chosen: list[int], options: FitOptions, seed: int, place: Path, progress: Progress
) -> int:
    """Write the data set; the same places are struck clearly and faintly."""
    area = good.shape[0] * good.shape[1]
    rounds = max(1, min(STRIKES, MOST_STRUCK_PIXELS // area) // len(KINDS))
    region = make_region(good.shape, options.roi, options.ignore_png, options.ignore_polygons)
    where = region.looked_at()
    for number, index in enumerate(chosen):
        write_image(place / "test" / GOOD / f"{number:03d}.png", good.read(index))
    numbers = range(rounds * len(KINDS))
    for number in progress.track(numbers, "drawing made-up defects on held-out frames"):
        kind, again = KINDS[number % len(KINDS)], number // math.lcm(len(KINDS), len(chosen))
        index = chosen[(number + again) % len(chosen)]  # a family meets another frame each time
        pixels, seen = good.read(index), where & _content(good, index)
        for name, strength in STRENGTHS.items():
            struck, mask = strike(pixels, kind, strength, seed + number, seen if seen.any() else where)
            write_image(place / "test" / f"{name}-{kind}" / f"{number:03d}.png", struck)
            write_image(
                place / "ground_truth" / f"{name}-{kind}" / f"{number:03d}_mask.png", mask * np.uint8(255)
            )
    return len(numbers)


def _content(good: GoodFrames, index: int) -> Mask:
    """True where a frame shows its image and no padding."""
    height, width = good.shape[:2]
    inside = np.zeros((height, width), np.bool_)
    rows, columns = read_image(good.frames[index].path).shape[:2] if good.letterboxed else (height, width)
    left, top, inner_w, inner_h = letterbox_inner(rows, columns, height, width)
    inside[top : top + inner_h, left : left + inner_w] = True
    return inside


def write_image(path: Path, pixels: Pixels) -> None:
    """Raises FitError where it can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        raise FitError(f"can't write {path}; is the disk full? Free some, or set TMPDIR to a larger disk")


def given_set(folder: Path, split: Split, place: Path) -> Path:
    """The defective frames as what evaluate takes: a data set as it is, or links next to the held-out good.

    Masks are those of ground_truth/<defect>. Raises SourceError where the folder holds no images, or good
    ones among others.
    """
    test, truth = folder / "test", folder / "ground_truth"
    within = test if test.is_dir() else folder
    images = [path for path in list_images(within) if not path.is_relative_to(truth)]
    defective = [path for path in images if not path.is_relative_to(test / GOOD)]
    for image in defective:
        _refuse_good(image, within)
    if len(defective) < len(images):
        return folder
    (place / "test").mkdir(parents=True)
    (place / "test" / GOOD).symlink_to(split.samples / "test" / GOOD)
    for number, image in enumerate(defective):
        kind = "".join(image.relative_to(within).parts[:-1][:1])
        name = f"{number:06d}_{image.stem}"
        _link(image, place / "test" / (kind or "defective") / f"{name}{image.suffix}")
        mask = truth / kind / f"{image.stem}_mask.png"
        if mask.is_file():
            _link(mask, place / "ground_truth" / (kind or "defective") / f"{name}_mask.png")
    return place


def _refuse_good(image: Path, within: Path) -> None:
    """A good frame must not count as a defective one, at whatever depth its folder lies."""
    for part in image.relative_to(within).parts[:-1]:
        if part.lower() in GOOD_NAMES:
            raise SourceError(
                f"{within} holds {part} next to others, with {image}; give --defective a data set with "
                f"test/{GOOD}, or a folder of defective frames alone"
            )


def _link(file: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(file.resolve())
