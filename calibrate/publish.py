"""From fitted statistics to a published recipe: graph, golden scores, limit, parity gate, hashes, report."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import tomli_w

from calibrate.blind import Blind, Square, Squares
from calibrate.describe import provenance, recipe_table
from calibrate.golden import Scored, check_in_fresh_process, score_in_fresh_process, write_frame
from calibrate.kinds import ALL_THE_SAME, Fitted, kept_in
from calibrate.learned import LEARNED
from calibrate.limits import Limit, find_limit
from calibrate.progress import Progress
from calibrate.report import Example, ReportData, write_report
from calibrate.store import Staging, activate, new_version
from inspectord.errors import FitError
from inspectord.recipe import MARKED, Recipe, content_hash, load_recipe

if TYPE_CHECKING:
    from calibrate.plan import Plan

# Between the compiled graph and the float64 statistics. Measured in bf16, random ResNet-18 and noise: 1.4 %.
PARITY_F32, PARITY_16_BIT = 1e-3, 0.05
MAPS_F32, MAPS_16_BIT = 1e-2, 0.15  # of their cells, where what is usual may be a small number


def publish(plan: Plan, model: ov.Model, fitted: Fitted, folder: Path, progress: Progress) -> Recipe:
    """Write the next version of the product, or nothing: it appears whole, after its gate.

    folder takes temporary files. Raises FitError where the compiled graph disagrees with the statistics, or
    these know no difference between the frames; and, the version stored but not activated, where the recipe
    lets a frame pass that is painted over.
    """
    options = plan.options
    if not fitted.held_out.any():
        raise FitError(ALL_THE_SAME + (", or a smaller --epsilon" if options.model == "padim" else ""))
    with new_version(options.recipes_dir, options.product) as staging:
        for _ in progress.track(range(1), "writing the graph"):
            ov.serialize(model, staging.path / "model.xml", staging.path / "model.bin")
        del model
        golden = _write_golden_frames(plan, staging.path)
        squares = Squares.of(plan)
        first = squares.write(folder, [0])
        graph = _Graph(plan, staging.path / "model.xml", folder, progress)
        scored = _scored(graph, fitted, golden, first)
        held_out = fitted.held_out * _widening(plan, fitted, scored)
        limit = find_limit(held_out, options.max_false_reject_rate)
        blind = Blind.of(limit.score, scored, squares, first, folder, graph.score)
        _write_golden_scores(staging.path, golden, scored)
        if plan.keeps:
            shutil.move(kept_in(folder), staging.path / LEARNED)
        parameters = fitted.parameters | ({"chosen_because": plan.instead} if plan.instead else {})
        _write_toml(staging.path, recipe_table(plan, parameters, limit, blind.tiles, staging.path))
        _write_provenance(staging.path, plan)
        for _ in progress.track(range(1), "checking that the recipe loads and repeats its golden scores"):
            check_in_fresh_process(staging.path, options.threads)
        names = plan.measured_names
        suspects = [names[i] for i in np.argsort(-held_out, kind="stable")[:3].tolist()]
        outlier = f"{suspects[0]} stands far out from all other good parts. Look at it: is it really good?"
        warnings = [
            *([plan.instead] if plan.instead else []),
            *limit.warnings,
            *([outlier] if limit.stands_out else []),
        ]
        finds_nothing = [blind.words(plan, suspects)] if blind else []
        _write_report(staging, plan, limit, held_out, scored, [*warnings, *finds_nothing])
    plan.kind.published(plan)
    for note in squares.note():
        progress.note(note)
    for warning in warnings:  # before a refusal, too: a rate that would lower the limit is among them
        progress.note(f"warning: {warning}")
    if blind and options.activate:
        raise FitError(
            f"{options.product}/{staging.version} was stored but not activated: "
            f"{blind.words(plan, suspects)}; see {staging.final / 'report.html'}"
        )
    for warning in finds_nothing:
        progress.note(f"warning: {warning}")
    if options.activate:
        return activate(options.recipes_dir, options.product, staging.version)
    return load_recipe(staging.final)


def _write_golden_frames(plan: Plan, staging: Path) -> list[Path]:
    """The golden frames and, last, the marked one."""
    (staging / "golden").mkdir()
    checked = plan.checked.tolist()
    names = [*(f"good_{number}.png" for number in range(len(checked) - 1)), MARKED]
    return [
        write_frame(staging / "golden" / name, plan.sample(sample))
        for name, sample in zip(names, checked, strict=True)
    ]


@dataclass(frozen=True)
class _Graph:
    """The compiled graph; folder takes temporary files."""

    plan: Plan
    model: Path
    folder: Path
    progress: Progress

    def score(self, frames: list[Path], mapped: int = 0) -> Scored:
        """Image files, and the maps of the first `mapped` ones. Raises FitError."""
        options = self.plan.options
        for _ in self.progress.track(range(1), "scoring golden frames with the compiled graph"):
            scored = score_in_fresh_process(
                self.model, options.device, self.plan.hint, options.threads, frames, self.folder, mapped
            )
        return scored


def _scored(graph: _Graph, fitted: Fitted, golden: list[Path], squares: list[Square]) -> Scored:
    """Golden frames, the report's three examples, then squares; these have no maps."""
    examples = [
        write_frame(graph.folder / f"example_{number}.png", graph.plan.good.read(index))
        for number, index in enumerate(_examples(graph.plan, fitted.held_out))
    ]
    mapped = [*golden, *examples]
    return graph.score([*mapped, *(square.image for square in squares)], len(mapped))


def _examples(plan: Plan, held_out: npt.NDArray[np.float64]) -> list[int]:
    """Frames with the lowest, the median and the highest held-out score."""
    order = np.argsort(held_out, kind="stable")
    return [int(plan.measured[order[place]]) for place in (0, len(order) // 2, -1)]


def _widening(plan: Plan, fitted: Fitted, scored: Scored) -> float:
    """Factor on the held-out scores for a graph that is less exact than the statistics; 1 in f32.

    Scores and maps are compared. The graph may be off by a share of the frame's highest value, or of the
    highest held-out score where that is larger: of parts far below the limit, rounding takes more and decides
    nothing. Raises FitError beyond.
    """
    compiled, known = scored.scores[: len(fitted.checked)], fitted.checked
    if not np.isfinite(compiled).all() or not np.isfinite(scored.maps).all():
        raise FitError("the compiled graph gives scores that are not finite; use --precision f32")
    exact, highest = plan.hint == "f32", fitted.held_out.max()
    cells = np.abs(scored.maps[: len(known)] - fitted.maps).max((1, 2))
    pairs = (
        ("scores", np.abs(compiled - known), known, PARITY_F32 if exact else PARITY_16_BIT),
        ("maps", cells, fitted.maps.max((1, 2)), MAPS_F32 if exact else MAPS_16_BIT),
    )
    for what, away, size, allowed in pairs:
        worst = float(np.max(away / np.maximum(size, highest)))
        if not worst <= allowed:
            step = "report this with the frames" if exact else "use --precision f32"
            raise FitError(
                f"the compiled graph's {what} differ from the statistics by {worst:.2%}; "
                f"the recipe was not published: {step}"
            )
    return 1.0 if exact else max(1.0, float(np.max(compiled / np.maximum(known, 1e-12))))


def _write_golden_scores(staging: Path, golden: list[Path], scored: Scored) -> None:
    table = [
        {
            "file": path.name,
            "score": float(scored.scores[number]),
            "tile_scores": [float(value) for value in scored.tile_scores[number]],
        }
        for number, path in enumerate(golden)
    ]
    (staging / "golden" / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _write_toml(staging: Path, table: dict[str, Any]) -> None:
    whole = {"content_hash": content_hash(table), **table}
    (staging / "recipe.toml").write_text(tomli_w.dumps(whole), encoding="utf-8")


def _write_provenance(staging: Path, plan: Plan) -> None:
    text = json.dumps(provenance(plan), indent=1, ensure_ascii=False)
    (staging / "provenance.json").write_text(text + "\n", encoding="utf-8")


def _write_report(
    staging: Staging,
    plan: Plan,
    limit: Limit,
    held_out: npt.NDArray[np.float64],
    scored: Scored,
    warnings: list[str],
) -> None:
    titles = ("lowest", "median", "highest")
    first = len(plan.checked)
    examples = [
        Example(title, plan.good.read(index), scored.maps[first + number])
        for number, (title, index) in enumerate(zip(titles, _examples(plan, held_out), strict=True))
    ]
    data = ReportData(
        product=plan.options.product,
        version=staging.version,
        spec=load_recipe(staging.path).spec,
        limit=limit,
        held_out=held_out,
        names=plan.measured_names,
        examples=examples,
        warnings=warnings,
        provenance=provenance(plan),
    )
    write_report(staging.path / "report.html", data)
