"""The figures of an evaluation, as table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from calibrate.metrics import auroc, rate_interval
from inspectord.messages import Verdict

NAMED = 10  # escaped files that the table names
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
            more = f" and {len(escaped) - NAMED} more" if len(escaped) > NAMED else ""
            console.print(f"escaped: {', '.join(escaped[:NAMED])}{more}", markup=False, soft_wrap=True)
        missed = [image for image in self.images if image.score is None]
        for image in missed:
            console.print(f"NOT_INSPECTED {image.file}: {image.why}", markup=False, soft_wrap=True)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
