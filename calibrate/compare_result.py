"""What a comparison found: one row a model kind, as table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calibrate.compare_tasks import Measured
from calibrate.evaluation import GOOD, Evaluation, ImageScore, Rate, image_auroc
from calibrate.options import duration
from calibrate.region import Mask
from inspectord.frame import Pixels
from inspectord.messages import Verdict


@dataclass(frozen=True)
class Example:
    """A frame that every kind's map is shown of; mask (h, w) is where a made-up defect lies."""

    title: str
    pixels: Pixels  # (h, w, c)
    mask: Mask | None


@dataclass(frozen=True)
class Compared:
    """One model kind; measured is None where it failed, and why says the reason."""

    kind: str
    fit_s: float
    measured: Measured | None
    why: str


@dataclass(frozen=True)
class Comparison:
    folders: tuple[str, ...]
    taught: int  # good frames
    held_out: tuple[str, ...]  # good frames no kind was fitted to
    seed: int
    threads: int
    strikes: int  # made-up defects of each strength
    defective: str  # folder of the defective frames; "" where none were given
    deadline_ms: float | None
    rows: tuple[Compared, ...]
    examples: tuple[Example, ...]

    def able(self) -> dict[str, Measured]:
        """The kinds that could be measured, in the order asked for."""
        return {row.kind: row.measured for row in self.rows if row.measured is not None}

    def failed(self) -> dict[str, str]:
        """The reason of each kind that could not."""
        return {row.kind: row.why for row in self.rows if row.measured is None}

    def columns(self) -> list[str]:
        """Of the table, on the terminal and on the page."""
        given = ["AUROC given", "AUPRO given", "escapes given"] if self.defective else []
        made_up = ["clear found", "faint found", "AUROC clear / faint", "good rejected"]
        return ["model", "fit", "ms p50 / p99", "memory", "recipe", *made_up, *given]

    def cells(self, row: Compared) -> list[str]:
        """A row's texts, of a failed kind the model alone."""
        if row.measured is None:
            return [row.kind]
        found, clear, faint = row.measured, *struck_figures(row.measured)
        texts = [
            row.kind,
            duration(row.fit_s),
            f"{found.timed.p50_ms:.1f} / {found.timed.p99_ms:.1f}",
            f"{found.timed.memory_mb:.0f} MB",
            f"{found.recipe_mb:.1f} MB",
            share(clear.found),
            share(faint.found),
            f"{figure(clear.auroc)} / {figure(faint.auroc)}",
            share(found.samples.false_rejects),
        ]
        return [*texts, *_given_cells(found)] if self.defective else texts

    def show(self, console: Console) -> None:
        """A table for people; reasons of failures below it."""
        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(self.columns()):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*map(Text, self.cells(row)))
        console.print(table)
        for kind, why in self.failed().items():
            console.print(f"{kind} failed: {why}", markup=False, highlight=False, soft_wrap=True)

    def to_json(self) -> dict[str, Any]:
        """Every figure and every image's score; no pixels."""
        rest = ("folders", "taught", "held_out", "seed", "threads", "strikes", "defective", "deadline_ms")
        return {name: getattr(self, name) for name in rest} | {"rows": [_row_json(row) for row in self.rows]}


@dataclass(frozen=True)
class Struck:
    """Made-up defects of one strength: found at the limit, and told from held-out good frames without one."""

    found: Rate
    auroc: float | None


def struck_figures(measured: Measured) -> tuple[Struck, Struck]:
    """Of the clear ones and of the faint ones."""
    clear, faint = (_struck(measured.samples, strength) for strength in ("clear", "faint"))
    return clear, faint


def _struck(samples: Evaluation, strength: str) -> Struck:
    images = of_strength(samples, strength)
    good = [image for image in samples.images if image.kind == GOOD]
    return Struck(found_of(images), image_auroc(good, images))


def of_strength(samples: Evaluation, strength: str) -> list[ImageScore]:
    return [image for image in samples.images if image.kind.startswith(f"{strength}-")]


def found_of(images: list[ImageScore]) -> Rate:
    return Rate.of(sum(map(is_found, images)), len(images))


def is_found(image: ImageScore) -> bool:
    """One that could not be inspected does not pass on the line, but nothing was found on it."""
    return image.verdict == Verdict.REJECT


def share(rate: Rate) -> str:
    return f"{rate.events}/{rate.parts}" if rate.parts else "-"


def figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _given_cells(found: Measured) -> list[str]:
    if found.given is None:
        return ["failed"] * 3
    pixels = found.given.pixels
    aupro = None if pixels is None else pixels.aupro_30
    return [figure(found.given.image_auroc), figure(aupro), share(found.given.escapes)]


def _row_json(row: Compared) -> dict[str, Any]:
    """json has no NaN, and a map is for the page."""
    table: dict[str, Any] = {"model": row.kind, "fit_s": row.fit_s, "failed": row.why}
    if row.measured is None:
        return table
    found, (clear, faint) = row.measured, struck_figures(row.measured)
    plain = ("blindness", "recipe_mb", "given_failed")
    return {
        **table,
        **{name: getattr(found, name) for name in plain},
        "timed": asdict(found.timed),
        "clear": asdict(clear),
        "faint": asdict(faint),
        "false_rejects": asdict(found.samples.false_rejects),
        "samples": found.samples.to_json(),
        "given": None if found.given is None else found.given.to_json(),
    }
