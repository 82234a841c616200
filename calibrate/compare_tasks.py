"""The steps of a comparison that run in a process of their own: a fit, and what a recipe is worth here."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from calibrate.mishaps import explained
from inspectord.errors import FrameError, InspectordError
from inspectord.linux import peak_mb

if TYPE_CHECKING:
    from calibrate.evaluation import Evaluation
    from calibrate.images import GoodFrames
    from calibrate.options import FitOptions
    from inspectord.frame import Pixels
    from inspectord.inspect import Floats, Inspector
    from inspectord.recipe import RecipeToml

WARM_UP, FEWEST_TIMED, MOST_TIMED, TIMED_S = 5, 30, 200, 5.0


class Task(Protocol):
    def run(self) -> Any:
        """The answer; raises InspectordError where there is none."""
        ...


@dataclass(frozen=True)
class Failed:
    """Why a task has no answer, in one line."""

    why: str


@dataclass(frozen=True)
class Fit:
    """Fit these good frames and publish; the answer is the recipe's folder."""

    options: FitOptions
    good: GoodFrames

    def run(self) -> Path:
        from calibrate.fit import estimate, fit
        from calibrate.plan import prepare
        from calibrate.progress import on_stderr

        shown = on_stderr()
        plan = prepare(self.options, shown, self.good)
        for line in estimate(plan).lines():
            shown.note(f"{self.options.model}: {line}")
        return fit(plan, shown).path


@dataclass(frozen=True)
class Timed:
    """Latency, and the most resident memory that loading and scoring took."""

    p50_ms: float
    p99_ms: float
    frames: int
    memory_mb: float


@dataclass(frozen=True)
class Time:
    """Load a recipe as a daemon would and score frames, with nothing loaded that a daemon does without."""

    recipe: Path
    threads: int
    frames: tuple[Path, ...]

    def run(self) -> Timed:
        from inspectord.inspect import Inspector
        from inspectord.recipe import load_recipe
        from inspectord.sources.files import read_image

        inspector = Inspector(load_recipe(self.recipe), threads=self.threads)
        times = _times(inspector, [read_image(path) for path in self.frames])
        return Timed(
            p50_ms=times[len(times) // 2],
            p99_ms=times[math.ceil(len(times) * 0.99) - 1],
            frames=len(times),
            memory_mb=peak_mb(),
        )


@dataclass(frozen=True)
class Seen:
    """An example frame and what a recipe makes of it; why says what was wrong with the frame instead."""

    score: float
    anomaly_map: Floats | None  # (rows, columns)
    why: str = ""


@dataclass(frozen=True)
class Worth:
    """What a recipe finds and rejects."""

    spec: RecipeToml
    blindness: str  # why no defect would be found, or not everywhere; empty where it sees
    recipe_mb: float
    samples: Evaluation  # held-out good frames, and made-up defects on them
    given: Evaluation | None  # the defective frames that were given
    given_failed: str  # why they could not be evaluated
    seen: tuple[Seen, ...]  # of the examples


@dataclass(frozen=True)
class Measured(Worth):
    """And how fast it does so on this box."""

    timed: Timed


@dataclass(frozen=True)
class Measure:
    """Evaluate a recipe, and look at the examples with it."""

    recipe: Path
    threads: int
    samples: Path
    given: Path | None
    examples: tuple[Path, ...]
    linked: bool = False  # given is a folder of links to the operator's files

    def run(self) -> Worth:
        from calibrate.evaluate import evaluate
        from calibrate.progress import on_stderr
        from inspectord.inspect import Inspector
        from inspectord.recipe import load_recipe

        recipe = load_recipe(self.recipe)
        inspector = Inspector(recipe, threads=self.threads)
        seen = tuple(_seen(inspector, path) for path in self.examples)
        del inspector
        given, why = None, ""
        samples = evaluate(recipe, self.samples, on_stderr(), self.threads)
        if self.given is not None:
            try:
                given = evaluate(recipe, self.given, on_stderr(), self.threads)
            except (InspectordError, OSError, MemoryError) as error:  # they have no say, so no veto either
                known = explained(error)
                why = str(error) if known is None else known[0]
                why = _as_named(why, self.given) if self.linked else why
        return Worth(
            spec=recipe.spec,
            blindness=recipe.blindness,
            recipe_mb=sum(path.stat().st_size for path in self.recipe.rglob("*") if path.is_file()) / 1e6,
            samples=samples,
            given=given,
            given_failed=why,
            seen=seen,
        )


def _times(inspector: Inspector, frames: list[Pixels]) -> list[float]:
    """Milliseconds a frame, ascending, without the first ones, which allocate."""
    times: list[float] = []
    until = math.inf
    while len(times) < WARM_UP + FEWEST_TIMED or (
        len(times) < WARM_UP + MOST_TIMED and time.perf_counter() < until
    ):
        if len(times) == WARM_UP:
            until = time.perf_counter() + TIMED_S
        began = time.perf_counter()
        inspector.score(frames[len(times) % len(frames)])
        times.append((time.perf_counter() - began) * 1e3)
    return sorted(times[WARM_UP:])


def _as_named(text: str, given: Path) -> str:
    """With the operator's own files in the place of the links to them, which go with the comparison."""
    for link in given.rglob("*"):
        if link.is_symlink():
            text = text.replace(str(link), str(link.readlink()))
    return text


def _seen(inspector: Inspector, path: Path) -> Seen:
    from inspectord.sources.files import read_image

    try:
        result = inspector.score(read_image(path))
    except FrameError as error:
        return Seen(math.nan, None, str(error))
    return Seen(result.score, result.anomaly_map.copy())
