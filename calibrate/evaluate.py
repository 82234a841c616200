"""calibrate evaluate: what a recipe is worth on images with known answers, scored as the daemon would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from calibrate.evaluation import (
    GOOD,
    Evaluation,
    ImageScore,
    KindResult,
    Likeness,
    PixelResult,
    Rate,
    Taught,
    image_auroc,
)
from calibrate.images import frame_digest
from calibrate.learned import taught_digests
from calibrate.metrics import Floats, aupro, defect_regions, pixel_auroc
from calibrate.progress import Progress
from inspectord.errors import FrameError, SourceError
from inspectord.frame import Pixels, letterbox, letterbox_inner
from inspectord.inspect import Inspector
from inspectord.judge import judge, sure_score
from inspectord.messages import Verdict
from inspectord.recipe import Recipe, RecipeToml
from inspectord.sources.files import list_images, read_image

MOST_PIXELS = 60_000_000  # float32: 240 MB, twice that while they are sorted


@dataclass(frozen=True)
class _Case:
    path: Path
    kind: str
    mask: Path | None


class _PixelScores:
    """Collects defect-free pixels and defect regions; of more than MOST_PIXELS good ones every step-th."""

    def __init__(self) -> None:
        self._good: list[npt.NDArray[np.float32]] = []
        self._regions: list[Floats] = []
        self._step = 1
        self._with_mask = self._without_mask = 0

    def add(self, scores: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None) -> None:
        """scores and mask (height, width); mask None for a good image."""
        good = scores if mask is None else scores[~mask]
        self._good.append(good.ravel()[:: self._step].copy())
        if mask is not None:
            self._with_mask += 1
            self._regions += defect_regions(scores, mask)
        if sum(part.size for part in self._good) > MOST_PIXELS:
            self._step *= 2
            self._good = [part[::2].copy() for part in self._good]

    def add_unknown(self) -> None:
        """A defective image whose mask is missing: it can say nothing of pixels."""
        self._without_mask += 1

    def result(self) -> PixelResult | None:
        good = np.concatenate([np.empty(0, np.float32), *self._good])
        if not self._regions or not good.size:
            return None
        self._good.clear()
        good.sort()
        return PixelResult(
            auroc=pixel_auroc(good, self._regions),
            aupro_30=aupro(good, self._regions, 0.30),
            aupro_05=aupro(good, self._regions, 0.05),
            images=self._with_mask,
            images_without_mask=self._without_mask,
            good_pixel_step=self._step,
        )


def evaluate(recipe: Recipe, folder: Path, progress: Progress, threads: int = 0) -> Evaluation:
    """Score test/good and test/<defect> of a folder in the common layout; masks in ground_truth/<defect>.

    Images that the recipe can't take count as NOT_INSPECTED and are named. Raises SourceError where the
    folder has no such layout, FrameError where it can take none of them.
    """
    inspector = Inspector(recipe, threads=threads)
    known, all_known = taught_digests(recipe)
    cases, pixels, images, taught = list(_cases(folder)), _PixelScores(), [], []
    for case in progress.track(cases, "scoring test images"):
        name = str(case.path.relative_to(folder / "test"))
        try:
            image = read_image(case.path)
            frame = _as_frame(image, recipe.spec)
            result = inspector.score(frame)
        except FrameError as error:
            images.append(ImageScore(name, case.kind, None, Verdict.NOT_INSPECTED, str(error)))
            continue
        if frame_digest(image if all_known else frame) in known:
            taught.append(name)
        score = sure_score(result)
        verdict, reason = judge(score, recipe.spec.limits.score)
        finite = verdict is not Verdict.NOT_INSPECTED
        images.append(
            ImageScore(name, case.kind, score if finite else None, verdict, "" if finite else reason)
        )
        if not finite:
            continue
        if case.kind == GOOD or case.mask is not None:
            mask = _mask(case.mask, image, recipe.spec) if case.mask is not None else None
            pixels.add(*_within(image, result.anomaly_map, mask, recipe.spec))
        else:
            pixels.add_unknown()
    if images and not any(image.score is not None for image in images):
        first = images[0]
        raise FrameError(f"none of the {len(images)} images could be inspected: {first.file}: {first.why}")
    return _summary(recipe, images, pixels.result(), Taught(tuple(taught), all_known))


def _cases(folder: Path) -> Iterator[_Case]:
    test = folder / "test"
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}; give one with test/good and test/<defect> folders")
    if not (test / GOOD).is_dir():
        raise SourceError(f"{folder} has no test/good; evaluate needs test/good and test/<defect> folders")
    for kind in sorted(path for path in test.iterdir() if path.is_dir()):
        truth = folder / "ground_truth" / kind.name
        for path in list_images(kind):
            mask = truth / f"{path.stem}_mask.png"
            yield _Case(path, kind.name, mask if mask.is_file() else None)


def _as_frame(image: Pixels, spec: RecipeToml) -> Pixels:
    height, width, channels = spec.frame.shape
    if not spec.frame.letterbox or image.shape[2] != channels:
        return image
    return letterbox(image, width, height)


def _mask(path: Path, image: Pixels, spec: RecipeToml) -> npt.NDArray[np.bool_]:
    """True on the defect, in frame pixels."""
    mask = read_image(path).max(axis=2)
    if mask.shape != image.shape[:2]:
        raise SourceError(f"mask {path} is {mask.shape[1]}x{mask.shape[0]}, its image is not; correct it")
    height, width, _ = spec.frame.shape
    if not spec.frame.letterbox:
        return np.asarray(mask > 0)
    left, top, inner_w, inner_h = letterbox_inner(mask.shape[0], mask.shape[1], height, width)
    framed = np.zeros((height, width), np.bool_)
    small = cv2.resize(mask, (inner_w, inner_h), interpolation=cv2.INTER_NEAREST)
    framed[top : top + inner_h, left : left + inner_w] = small > 0
    return framed


def _within(
    image: Pixels, anomaly_map: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None, spec: RecipeToml
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
    """Map and mask at frame resolution, cut to the region of interest and, letterboxed, to the image."""
    x, y, width, height = spec.region.roi
    rows, columns = anomaly_map.shape
    size = round(columns * spec.tiles.cell_px), round(rows * spec.tiles.cell_px)
    scores = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR)[:height, :width]
    left, top, right, bottom = x, y, x + width, y + height
    if spec.frame.letterbox:
        inner = letterbox_inner(image.shape[0], image.shape[1], spec.frame.height, spec.frame.width)
        left, top = max(left, inner[0]), max(top, inner[1])
        right, bottom = min(right, inner[0] + inner[2]), min(bottom, inner[1] + inner[3])
    cut = scores[top - y : bottom - y, left - x : right - x]
    # Rounding of cells to pixels can leave the map a pixel short of the region.
    return cut, None if mask is None else mask[top : top + cut.shape[0], left : left + cut.shape[1]]


def _summary(
    recipe: Recipe, images: list[ImageScore], pixels: PixelResult | None, taught: Taught
) -> Evaluation:
    good = [image for image in images if image.kind == GOOD]
    bad = [image for image in images if image.kind != GOOD]
    kinds = []
    for kind in sorted({image.kind for image in bad}):
        of_kind = [image for image in bad if image.kind == kind]
        kinds.append(KindResult(kind, image_auroc(good, of_kind), _escapes(of_kind)))
    rejected = sum(image.verdict != Verdict.PASS for image in good)
    return Evaluation(
        recipe=recipe.id,
        recipe_hash=recipe.hash,
        limit=recipe.spec.limits.score,
        image_auroc=image_auroc(good, bad),
        false_rejects=Rate.of(rejected, len(good)),
        escapes=_escapes(bad),
        kinds=tuple(kinds),
        pixels=pixels,
        images=tuple(images),
        likeness=Likeness.of(good, recipe.spec.limits),
        taught=taught,
    )


def _escapes(images: list[ImageScore]) -> Rate:
    return Rate.of(sum(image.verdict == Verdict.PASS for image in images), len(images))
