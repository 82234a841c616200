"""calibrate compare: several model kinds on the same good frames of this box, side by side."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from calibrate.compare_frames import STRENGTHS, Split, given_set, split, write_image
from calibrate.compare_page import write_page
from calibrate.compare_result import Compared, Comparison, Example
from calibrate.compare_tasks import Failed, Fit, Measure, Measured, Time, Timed
from calibrate.compare_wanted import Wanted
from calibrate.compare_words import advise
from calibrate.compare_worker import ask
from calibrate.evaluation import GOOD
from calibrate.images import GoodFrames
from calibrate.options import ADAPT_FEWEST, ADAPTED, FitOptions
from calibrate.progress import Progress
from calibrate.show import say
from calibrate.synthetic import KINDS
from inspectord.errors import FitError, FrameError
from inspectord.frame import letterbox
from inspectord.sources.files import list_images, read_image

GIVEN_EXAMPLES = 3
ROUNDS, TIMED_FRAMES = 3, 8  # few frames, so that they count little as memory


@dataclass(frozen=True)
class _Fitted:
    kind: str
    recipe: Path | Failed
    seconds: float


@dataclass(frozen=True)
class _Bench:
    """What all kinds are measured with; every step runs in a process of its own."""

    work: Path
    good: GoodFrames
    samples: Path
    given: Path | None
    examples: tuple[Path, ...]
    threads: int
    progress: Progress

    def fit(self, options: FitOptions) -> _Fitted:
        began = time.monotonic()
        recipe = ask(Fit(options, self.good), self.work)
        if isinstance(recipe, Failed):
            self.progress.note(f"{options.model} failed: {recipe.why}")
        return _Fitted(options.model, recipe, time.monotonic() - began)

    def times(self, fitted: list[_Fitted]) -> list[Timed | Failed]:
        """Each recipe's times in the quietest of the rounds: a box has other work, and gets hot by a fit."""
        frames = tuple(list_images(self.samples / "test" / GOOD)[:TIMED_FRAMES])
        rounds: list[list[Timed | Failed]] = [[] for _ in fitted]
        for _ in self.progress.track(range(ROUNDS), "timing all kinds in turn"):
            for one, found in zip(fitted, rounds, strict=True):
                known = one.recipe
                found.append(
                    known if isinstance(known, Failed) else ask(Time(known, self.threads, frames), self.work)
                )
        return [_quietest(found) for found in rounds]

    def row(self, fitted: _Fitted, timed: Timed | Failed) -> Compared:
        if isinstance(timed, Failed):
            return Compared(fitted.kind, fitted.seconds, None, timed.why)
        assert isinstance(fitted.recipe, Path)  # or nothing had been timed
        linked = self.given is not None and self.given.is_relative_to(self.work)
        measure = Measure(fitted.recipe, self.threads, self.samples, self.given, self.examples, linked)
        found = ask(measure, self.work)
        if isinstance(found, Failed):
            return Compared(fitted.kind, fitted.seconds, None, found.why)
        return Compared(fitted.kind, fitted.seconds, Measured(**vars(found), timed=timed), "")


def _quietest(rounds: list[Timed | Failed]) -> Timed | Failed:
    """The times of the lowest median, with the highest peak of memory; or why there are none."""
    timed = [found for found in rounds if isinstance(found, Timed)]
    if len(timed) < len(rounds):
        return next(found for found in rounds if isinstance(found, Failed))
    quiet = min(timed, key=lambda found: found.p50_ms)
    return replace(quiet, memory_mb=max(found.memory_mb for found in timed))


def compare(wanted: Wanted, progress: Progress) -> Comparison:
    """Fit and measure every kind; one that fails is a row with the reason.

    Nothing stays behind but wanted.keep, a folder of recipes that appears whole at the end. Raises
    InspectordError where the frames allow no comparison at all.
    """
    first = wanted.kinds[0]
    with _folders(wanted.keep) as (work, place):
        parted = split(first, first.seed, work, progress)
        _check_enough(wanted, len(parted.teaching))
        given = None if wanted.defective is None else given_set(wanted.defective, parted, work / "given")
        examples = _examples(parted, given, first.letterbox)
        saved = _saved(examples, work)
        bench = _Bench(work, parted.teaching, parted.samples, given, saved, first.threads, progress)
        fitted = []
        for number, options in enumerate(wanted.kinds, start=1):
            progress.note(f"--- {options.model}, {number} of {len(wanted.kinds)} ---")
            fitted.append(bench.fit(replace(options, recipes_dir=place, product=options.model)))
        rows = [bench.row(one, timed) for one, timed in zip(fitted, bench.times(fitted), strict=True)]
    return Comparison(
        folders=tuple(map(str, first.folders)),
        taught=len(parted.teaching),
        held_out=tuple(map(str, parted.held_out)),
        seed=first.seed,
        threads=first.threads or os.cpu_count() or 1,
        strikes=parted.strikes,
        defective=str(wanted.defective or ""),
        deadline_ms=wanted.deadline_ms,
        rows=tuple(rows),
        examples=examples,
    )


def _check_enough(wanted: Wanted, teaching: int) -> None:
    """Before the first fit, for the last one would say so after minutes."""
    adapted = [options.model for options in wanted.kinds if options.model in ADAPTED.values()]
    if teaching < ADAPT_FEWEST and adapted:
        raise FitError(
            f"every fourth good frame is held out here, and {teaching} are left to teach; {adapted[0]} needs "
            f"{ADAPT_FEWEST}: give {math.ceil(ADAPT_FEWEST * 4 / 3)} good frames, or leave it out of --models"
        )


@contextlib.contextmanager
def _folders(keep: Path | None) -> Iterator[tuple[Path, Path]]:
    """A folder to work in and one for recipes."""
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calibrate-compare-")))
        if keep is None:
            yield work, work / "recipes"
            return
        beside = tempfile.TemporaryDirectory(prefix=f".{keep.name}-", dir=keep.absolute().parent)
        recipes = Path(stack.enter_context(beside)) / "recipes"
        recipes.mkdir()
        yield work, recipes
        if any(recipes.iterdir()):
            recipes.rename(keep)


def _examples(parted: Split, given: Path | None, boxed: tuple[int, int] | None) -> tuple[Example, ...]:
    """A held-out good frame, every other family clearly, the others faintly, and some given frames."""
    test, truth = parted.samples / "test", parted.samples / "ground_truth"
    found = [Example("good, held out", read_image(list_images(test / GOOD)[0]), None)]
    for number, kind in enumerate(KINDS):
        strength = list(STRENGTHS)[number % len(STRENGTHS)]
        path = list_images(test / f"{strength}-{kind}")[0]
        mask = read_image(truth / f"{strength}-{kind}" / f"{path.stem}_mask.png")[..., 0] > 0
        found.append(Example(f"{strength} {kind}, made up", read_image(path), mask))
    if given is not None:
        for path in _some_of_each(given / "test"):
            with contextlib.suppress(FrameError):  # the evaluation names it
                pixels = read_image(path)
                pixels = letterbox(pixels, *boxed) if boxed else pixels
                found.append(Example(f"{path.parent.name}, given", pixels, None))
    return tuple(found)


def _some_of_each(test: Path) -> list[Path]:
    """The first defective image of each folder, then the second ones."""
    kinds = [path for path in sorted(test.iterdir()) if path.is_dir() and path.name != GOOD]
    ranked = [(rank, path) for kind in kinds for rank, path in enumerate(list_images(kind))]
    return [path for _, path in sorted(ranked)[:GIVEN_EXAMPLES]]


def _saved(examples: tuple[Example, ...], work: Path) -> tuple[Path, ...]:
    paths = tuple(work / f"example_{number}.png" for number in range(len(examples)))
    for path, example in zip(paths, examples, strict=True):
        write_image(path, example.pixels)
    return paths


def write_results(console: Console, comparison: Comparison, html: Path | None, figures: Path | None) -> None:
    """Show the table and the recommendation; write the page and the figures where they are wanted."""
    advice = advise(comparison)
    comparison.show(console)
    for line in advice.lines():
        say(console, line)
    if advice.kind is not None:
        folders = shlex.join(comparison.folders)
        say(console, f"next: `calibrate fit {folders} --product NAME --model {advice.kind}`, flags as here")
    if html is not None:
        write_page(html, comparison, advice)
        say(console, f"page: {html}")
    if figures is not None:
        table = comparison.to_json() | {"advice": asdict(advice)}
        figures.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
