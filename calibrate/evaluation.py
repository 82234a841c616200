"""The figures of an evaluation, as table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from calibrate.limits import chance_above, usually_above
from calibrate.metrics import auroc, rate_interval
from inspectord.messages import Verdict
from inspectord.recipe import Limits

NAMED = 10  # files of a list that the table names
UNTOLD = 0.6  # of a kind with a lower AUROC good test parts score about as high
BY_CHANCE = 0.001  # less likely than this, and good test parts are not like those that taught
GOOD = "good"  # the folder name of good parts; all others are kinds of defects


@dataclass(frozen=True)
class ImageScore:
    """One test image; score is None where it could not be inspected, why says the reason."""

    file: str  # below test/
    kind: str
    score: float | None
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Rate:
    """events of parts, with a 95 % interval."""

    events: int
    parts: int
    low: float
    high: float

    @classmethod
    def of(cls, events: int, parts: int) -> Rate:
        return cls(events, parts, *rate_interval(events, parts))

    def __str__(self) -> str:
        if self.parts == 0:
            return "no parts"
        share = self.events / self.parts
        return f"{self.events}/{self.parts} = {share:.1%} ({self.low:.1%} to {self.high:.1%})"


def image_auroc(good: list[ImageScore], bad: list[ImageScore]) -> float | None:
    """None where no image of the good or of the bad ones has a score."""
    scores = [
        np.array([image.score for image in images if image.score is not None]) for images in (good, bad)
    ]
    return auroc(*scores) if all(len(part) for part in scores) else None


@dataclass(frozen=True)
class KindResult:
    kind: str
    image_auroc: float | None  # against the good test images
    escapes: Rate


@dataclass(frozen=True)
class PixelResult:
    auroc: float
    aupro_30: float
    aupro_05: float
    images: int  # defective images with a mask
    images_without_mask: int  # left out of the pixel figures
    good_pixel_step: int  # every so many-th defect-free pixel was used


@dataclass(frozen=True)
class Likeness:
    """Whether good test parts score as those of the fit did, each held out."""

    above: Rate  # that score more than nine in ten of those
    usual: float  # number of them, on average, were all different parts of one kind
    chance: float  # of so many or more
    alike: bool

    @classmethod
    def of(cls, good: Sequence[ImageScore], limits: Limits) -> Likeness | None:
        """None where the recipe does not tell, or no good part has a score."""
        scores = [image.score for image in good if image.score is not None]
        if limits.nine_in_ten is None or not scores:
            return None
        above = sum(score > limits.nine_in_ten for score in scores)
        chance = chance_above(above, len(scores), limits.good_parts)
        usual = usually_above(len(scores), limits.good_parts)
        return cls(Rate.of(above, len(scores)), usual, chance, chance >= BY_CHANCE)

    def in_words(self) -> str:
        """For who would take the figures for what the detector is worth."""
        return (
            f"note: {self.above.events} of {self.above.parts} good test parts score more than nine in ten of "
            f"the fit's good parts, each held out; by chance {self.usual:.2g} would. They are of another "
            "kind or lot, or under other light, or the fit's frames show the same parts more than once. "
            "AUROC and false rejects tell of that too. Where such parts are good, teach others of them, by "
            "`calibrate extend` or a new fit."
        )


@dataclass(frozen=True)
class Taught:
    """Test images that fit was given, too."""

    files: tuple[str, ...]
    all_known: bool  # else the recipe tells no more than its golden frames

    def in_words(self, images: int) -> str:
        at_least = "" if self.all_known else "at least "
        return (
            f"warning: {at_least}{len(self.files)} of these {images} images taught the recipe, so the "
            f"figures are better than of new parts: {_some(self.files)}. Test with images that fit was not "
            "given"
        )


@dataclass(frozen=True)
class Evaluation:
    recipe: str
    recipe_hash: str
    limit: float
    image_auroc: float | None
    false_rejects: Rate
    escapes: Rate
    kinds: tuple[KindResult, ...]
    pixels: PixelResult | None  # None: no masks
    images: tuple[ImageScore, ...]
    # None: the recipe is of before it was asked, or no good part has a score.
    likeness: Likeness | None = None
    taught: Taught = Taught((), all_known=False)

    def to_json(self) -> dict[str, Any]:
        """Everything, every image's score included."""
        return asdict(self)

    def show(self, console: Console) -> None:
        """A table for people."""
        table = Table(title=f"{self.recipe} at its limit {self.limit:.4g}")
        for column in ("kind", "image AUROC", "rejected wrongly / escaped (95 % interval)"):
            table.add_column(column)
        table.add_row(GOOD, "", f"rejected or not inspected {self.false_rejects}")
        for kind in self.kinds:
            table.add_row(kind.kind, _figure(kind.image_auroc), f"escapes {kind.escapes}")
        table.add_row("all defects", _figure(self.image_auroc), f"escapes {self.escapes}", style="bold")
        console.print(table)
        if self.pixels is None:
            console.print("no ground-truth masks: no pixel figures")
        else:
            p = self.pixels
            console.print(
                f"pixel AUROC {p.auroc:.4f}, AUPRO at 0.30 {p.aupro_30:.4f}, at 0.05 {p.aupro_05:.4f} "
                f"({p.images} images with masks, {p.images_without_mask} without)"
            )
        escaped = [
            image.file for image in self.images if image.kind != GOOD and image.verdict == Verdict.PASS
        ]
        if escaped:
            console.print(f"escaped: {_some(escaped)}", markup=False, soft_wrap=True)
            for told in (self._told_apart(), *self.untold()):
                if told:
                    console.print(told, markup=False, soft_wrap=True)
        if self.likeness is not None and not self.likeness.alike:
            good = [image for image in self.images if image.kind == GOOD and image.score is not None]
            highest = sorted(good, key=lambda image: image.score or 0, reverse=True)
            named = _some([image.file for image in highest[: self.likeness.above.events]])
            console.print(f"{self.likeness.in_words()} Highest: {named}", markup=False, soft_wrap=True)
        if self.taught.files:
            console.print(self.taught.in_words(len(self.images)), markup=False, soft_wrap=True)
        missed = [image for image in self.images if image.score is None]
        for image in missed:
            console.print(f"NOT_INSPECTED {image.file}: {image.why}", markup=False, soft_wrap=True)

    def untold(self) -> list[str]:
        """Of each kind that passes and scores hardly higher than good parts: that no limit stops it alone."""
        return [
            f"{each.kind}: {each.escapes.events} of {each.escapes.parts} escape, and they score hardly "
            f"higher than good test parts (AUROC {each.image_auroc:.2f}), so a lower limit would reject good "
            "parts first. Is something missing there, on parts that lie at any angle? What is left looks "
            "like any other good place: see docs/fitting.md, 'Something is missing'"
            for each in self.kinds
            if each.image_auroc is not None and each.image_auroc < UNTOLD and each.escapes.events
        ]

    def _told_apart(self) -> str:
        """That a lower limit would stop defects, and what lowers it; nothing where it would not."""
        known = [(image.kind, image.score) for image in self.images if image.score is not None]
        highest = max((score for kind, score in known if kind == GOOD), default=math.inf)
        apart = sum(kind != GOOD and highest < score <= self.limit for kind, score in known)
        if not apart:
            return ""
        return (
            f"of these {apart} score more than every good test part (up to {highest:.4g}), and less than the "
            f"limit ({self.limit:.4g}): more good parts lower it, and so does a larger --max-false-rejects"
        )


def _some(files: Sequence[str]) -> str:
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return f"{', '.join(files[:NAMED])}{more}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
