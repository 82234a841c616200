"""calibrate fit: from a plan to a recipe, in the order in which it happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from calibrate.adapt import NothingGainedError, not_adapted, plain
from calibrate.damping import Damping
from calibrate.ensemble import level_tiles
from calibrate.folds import Indices
from calibrate.graph import Head, recipe_model, valid_cells
from calibrate.kinds import Fitted, Learned, TooAlikeError
from calibrate.learned import LEARNED, keep
from calibrate.levels import Levels, level
from calibrate.levels import plain as in_distances
from calibrate.options import Estimate
from calibrate.plan import Plan, prepare
from calibrate.progress import Progress
from calibrate.publish import publish
from calibrate.spool import Scratch
from calibrate.surroundings import Surroundings
from calibrate.tiles import Joiner
from inspectord.errors import FitError
from inspectord.frame import Pixels
from inspectord.inspect import Floats, compile_model
from inspectord.linux import peak_mb
from inspectord.recipe import Recipe

INSTEAD = (
    "good frames are too alike for patchcore to tell them apart, so padim is fitted, which is for parts that "
    "all lie in the same place"
)
HALF = 0.5  # of a frame's sides, or less, is seen: `closer` says so
PASSES = (
    "frames are brought to the good ones' light, so a part that covers half of the frame or more, or lies "
    "on black or white, may be up to a sixth darker or brighter all over and pass; is that a defect? Then "
    "fit with --no-relight"
)
UNDAMPED = (
    "good frames are so alike that what other light does to their features can't be damped, so it is fitted "
    "without that"
)


def _request(plan: Plan) -> ov.InferRequest:
    """The feature graph, compiled as the recipe will run; its memory goes with the request."""
    options = plan.options
    compiled = compile_model(plan.graph, options.device, plan.hint, options.threads)
    return compiled.create_infer_request()


def estimate(plan: Plan) -> Estimate:
    """Time and memory of the fit; times one frame on this box, and sees what memory its inference takes.

    Raises FitError where the model kind foresees that it can't be done.
    """
    frame_s = _frame_seconds(plan)
    read = plan.samples + len(plan.learns_around) + 2 * len(plan.learns_light)
    cost = plan.kind.cost(plan, peak_mb=peak_mb())
    return Estimate(
        frames=len(plan.good),
        positions=plan.positions,
        dimensions=plan.reduction.dimensions,
        frame_ms=frame_s * 1e3,
        recipe_mb=cost.recipe_mb,
        kept_mb=plan.kept_mb if plan.keeps else 0.0,
        disk_mb=cost.disk_mb + (plan.kept_mb if plan.keeps else 0.0),
        memory_mb=cost.memory_mb,
        seconds=read * frame_s * 1.3 + cost.seconds + _int8_seconds(plan, frame_s, cost.seconds),
        cell_px=plan.geometry.cell / plan.geometry.scale,
        about=cost.about,
    )


def closer(plan: Plan) -> list[str]:
    """A line for who fits, where a frame is scaled to half its sides or less by itself: what that may hide.

    Measured on parts drawn at 1024 x 1024 pixels, docs/research-log.md, "How many pixels".
    """
    geometry = plan.geometry
    if plan.options.resize or geometry.tiles > 1 or geometry.scale > HALF:
        return []
    width, height = geometry.roi[2:]
    shorter = min(geometry.rows.length, geometry.columns.length)
    wanted = min(width, height, 2 * shorter)
    return [
        f"{width}x{height} pixels are looked at as {geometry.columns.length}x{geometry.rows.length}: small "
        f"defects are found better with --resize {wanted}, in about {(wanted / shorter) ** 2:.0f} times the "
        "time a frame"
    ]


def _int8_seconds(plan: Plan, frame_s: float, learning_s: float) -> float:
    if plan.options.precision != "int8":
        return 0.0
    from calibrate.eight_bits import seconds

    return seconds(plan, frame_s, learning_s)


def _frame_seconds(plan: Plan) -> float:
    request, frame = _request(plan), plan.good.read(0)[None]
    request.infer([frame])
    began = time.perf_counter()
    request.infer([frame])
    return time.perf_counter() - began


def fit(plan: Plan, progress: Progress) -> Recipe:
    """Fit, calibrate the limit, build the graph, and publish a new recipe version that passed its gate."""
    if plan.light is not None and plan.options.relight is None and not plan.undamped:
        progress.note(PASSES)
    return _settled(plan, progress)


def _settled(plan: Plan, progress: Progress) -> Recipe:
    """Fit, or what takes its place: without damping, without networks, by padim."""
    undamped = False
    try:
        return _fitted(plan, progress)
    except NothingGainedError as error:
        options, instead, unasked = plain(plan.options), plan.instead, plan.unasked
        progress.note(not_adapted(options.model, error))
    except TooAlikeError:
        if not (plan.damps or plan.unasked):
            raise
        progress.note(UNDAMPED if plan.damps else INSTEAD)
        options = replace(plain(plan.options), model="padim", adapt=plan.options.adapt)
        instead, unasked, undamped = INSTEAD, False, plan.damps
    # Out here, where no traceback holds what the first fit had in memory.
    if undamped:
        return _settled(replace(plan, undamped=True), progress)
    other = replace(prepare(options, progress, plan.good), instead=instead, unasked=unasked)
    if instead and not plan.instead:
        for line in estimate(other).lines():
            progress.note(line)
    return _settled(other, progress)


def _fitted(plan: Plan, progress: Progress) -> Recipe:
    with plan.kind.trained(plan, progress) as ready, Scratch() as folder:
        if ready.options.precision == "int8" and ready.earlier is None:  # else the graph is so already
            from calibrate.eight_bits import in_eight_bits

            ready = in_eight_bits(ready, progress)
        model, fitted = modelled(ready, folder, progress)
        return publish(ready, model, fitted, folder, progress)


def modelled(plan: Plan, folder: Path, progress: Progress) -> tuple[ov.Model, Fitted]:
    """The recipe's graph, which reads files in folder until it is saved, and what its statistics say."""
    joiner = _joiner(plan)
    if len(plan.learns_around):
        plan = replace(plan, graph=_less_surroundings(plan, progress))
    if len(plan.learns_light):
        plan = replace(plan, graph=_damped(plan, progress))
    learned = plan.kind.learn(plan, _embeddings(plan, progress), folder, progress)
    head, levels, fitted = _scores(plan, learned, joiner, progress)
    if plan.keeps:
        fitted = replace(fitted, parameters=fitted.parameters | {LEARNED: keep(plan, folder)})
    learned.away.close()
    learned.checked.close()
    scorer = learned.scored.scorer if learned.scored else None
    return recipe_model(plan.graph, head, joiner, levels, scorer), fitted


def _scores(
    plan: Plan, learned: Learned, joiner: Joiner, progress: Progress
) -> tuple[Head, Levels | None, Fitted]:
    if plan.options.absolute:
        return learned.head, None, in_distances(learned, joiner)
    if plan.options.normalise == "tile":
        by_tile, fitted = level_tiles(learned, joiner, plan.folds, progress)
        return by_tile.over(learned.head), None, fitted
    levels, fitted = level(learned, joiner, plan.folds, progress)
    return learned.head, levels, fitted


def _less_surroundings(plan: Plan, progress: Progress) -> ov.Model:
    taught = _embedded(plan, plan.learns_around, progress, "learning what surroundings foretell")
    return Surroundings.learn(taught, plan.geometry).less(plan.graph, plan.geometry)


def _damped(plan: Plan, progress: Progress) -> ov.Model:
    request = _request(plan)

    def pairs() -> Iterator[tuple[Floats, Floats]]:
        for number in progress.track(plan.learns_light.tolist(), "learning what other light does"):
            frame = _embedding(request, plan.sample(number)).copy()
            yield frame, _embedding(request, plan.relit(number))

    return Damping.learn(pairs()).damp(plan.graph)


def _embeddings(plan: Plan, progress: Progress) -> Iterator[npt.NDArray[np.float32]]:
    """Of the samples that the kind needs."""
    return _embedded(plan, plan.kind.needs(plan), progress, "extracting features")


def _embedded(
    plan: Plan, samples: Indices, progress: Progress, what: str
) -> Iterator[npt.NDArray[np.float32]]:
    """Embeddings (positions, d) of these samples.

    One frame a call: the batch never changes what is computed.
    """
    request = _request(plan)
    for number in progress.track(samples.tolist(), what):
        yield _embedding(request, plan.sample(number))


def _embedding(request: ov.InferRequest, pixels: Pixels) -> Floats:
    """(positions, d), until the request's next frame."""
    request.infer([pixels[None]])
    embeddings: Floats = request.get_output_tensor(0).data
    if not np.isfinite(embeddings).all():
        raise FitError("the backbone's features are not finite; use --precision f32, or other weights")
    return embeddings


def _joiner(plan: Plan) -> Joiner:
    valid = valid_cells(plan.geometry, plan.region.ignored)
    sigma = plan.smoothing_px / plan.geometry.cell
    return Joiner(plan.geometry, valid, sigma, plan.options.top_tiles)
