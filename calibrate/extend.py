"""calibrate extend: good frames added to what a recipe has learned, as a new version, without a refit.

The frames go through the recipe's own graph, cut behind its features, so the light that they are brought to
and what surroundings foretell stay as the fit learned them. They are added to the statistics that the fit
kept (calibrate.learned). Levels, limit, golden frames, gate and report are made as by a fit, of
the new frames and of the earlier ones still at hand: only what is measured against the new statistics may say
how far good parts lie from them. Old distances were made by fewer frames: with a limit that rests on them
defects would pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.backbones import Chosen
from calibrate.eight_bits import Loss
from calibrate.folds import Folds, Indices, choose_folds
from calibrate.graph import Reduction
from calibrate.images import (
    MINIMUM_GOOD_FRAMES,
    GoodFrame,
    GoodFrames,
    collect_good_frames,
    frame_digest,
)
from calibrate.kinds import Kind, open_kind
from calibrate.learned import Earlier, open_learned, stored_geometry, stored_mask, stored_options
from calibrate.options import FitOptions
from calibrate.plan import Plan
from calibrate.progress import Progress
from calibrate.region import Region
from calibrate.store import resolve
from inspectord.errors import FitError, FrameError
from inspectord.recipe import Recipe
from inspectord.sources.files import read_image

NAMED = 3  # images named where many are left out


@dataclass(frozen=True)
class Wanted:
    """What an extension is asked for; all else is as the recipe was fitted."""

    recipe: str  # PRODUCT or PRODUCT/VERSION
    recipes_dir: Path
    folders: tuple[Path, ...]
    max_false_reject_rate: float | None = None  # None: the recipe's
    skip_bad: bool = False
    activate: bool = True
    threads: int = 0
    memory_mb: int = FitOptions.memory_mb


@dataclass
class FromRecipe:
    """The backbone of a recipe: its layers lie in the graph already."""

    name: str
    digest: str
    layers: tuple[str, ...]

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        """Raises FitError: what is cut from a graph builds no other."""
        raise FitError(f"the weights of {self.name} lie in the recipe's graph only; fit again to change it")


def prepare_extension(wanted: Wanted, progress: Progress) -> Plan:
    """Read and check the new frames, and open what the recipe has learned.

    Raises RecipeError, FitError or FrameError for whatever makes it impossible, before any long work.
    """
    recipe = resolve(wanted.recipes_dir, wanted.recipe)
    earlier = open_learned(recipe)
    options, spec = _options(recipe, earlier, wanted), recipe.spec
    kind = open_kind(spec.model.kind)
    good, earlier = _frames(recipe, earlier, options, progress)
    dimensions = int(spec.model.parameters["dimensions"])
    return Plan(
        options=options,
        good=good,
        region=Region(spec.region.roi, stored_mask(earlier, spec.frame.height, spec.frame.width)),
        geometry=stored_geometry(earlier),
        kind=kind,
        backbone=FromRecipe(spec.model.backbone, spec.model.backbone_hash, spec.model.layers),
        reduction=Reduction((np.arange(dimensions),)),
        graph=_feature_graph(recipe),
        folds=_folds(good, kind, options),
        around=bool(spec.model.parameters.get("surroundings")),
        earlier=earlier,
        rest=spec.runtime.rest,
        loss=Loss.of(spec.model.parameters),
    )


def _options(recipe: Recipe, earlier: Earlier, wanted: Wanted) -> FitOptions:
    spec = recipe.spec
    return FitOptions(
        product=spec.product,
        recipes_dir=wanted.recipes_dir,
        folders=wanted.folders,
        backbone=spec.model.backbone,
        max_false_reject_rate=wanted.max_false_reject_rate or spec.limits.wanted_false_reject_rate,
        skip_bad=wanted.skip_bad,
        activate=wanted.activate,
        threads=wanted.threads,
        memory_mb=wanted.memory_mb,
        **(stored_options(earlier) | {"extendable": True}),
    )


def _frames(
    recipe: Recipe, earlier: Earlier, options: FitOptions, progress: Progress
) -> tuple[GoodFrames, Earlier]:
    """All frames that can be measured: the new ones, and of the earlier ones those that are found again."""
    found = _collected(recipe, options, progress)
    known = {frame.digest for frame in earlier.frames}
    new = [replace(frame, run=_absolute(frame.run)) for frame in found.frames if frame.digest not in known]
    given = {frame.digest: frame.path for frame in found.frames if frame.digest in known}
    if not new:
        raise FitError(f"all {len(given)} images have taught {recipe.id} already; give new ones")
    if given:
        names = [path.name for path in given.values()]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        progress.note(
            f"have taught {recipe.id} already: {len(names)} images ({', '.join(names[:NAMED])}{more}); they "
            "teach nothing more, but are measured again for the limit, as all earlier frames still there are"
        )
    at = [replace(frame, path=given.get(frame.digest, frame.path)) for frame in earlier.frames]
    there = [_is_there(frame) for frame in progress.track(at, "looking for the earlier frames")]
    absent = tuple(index for index, found_again in enumerate(there) if not found_again)
    again = [frame for frame, found_again in zip(at, there, strict=True) if found_again]
    frames = tuple(sorted((*new, *again), key=lambda frame: frame.digest))
    if absent:
        _enough(recipe, len(absent), len(there), len(frames), progress)
    return replace(found, frames=frames), replace(earlier, absent=absent)


def _collected(recipe: Recipe, options: FitOptions, progress: Progress) -> GoodFrames:
    asked = options.folders, options.letterbox, options.skip_bad
    found = collect_good_frames(*asked, progress, fewest=1)
    if found.shape != recipe.spec.frame.shape:
        wanted, got = ("x".join(map(str, (w, h, c))) for h, w, c in (recipe.spec.frame.shape, found.shape))
        raise FrameError(
            f"the new frames are {got}, those of recipe {recipe.id} are {wanted} (width, height, channels); "
            "give frames of that size, or fit again"
        )
    return found


def _absolute(run: str) -> str:
    return str(Path(run).absolute())


def _enough(recipe: Recipe, absent: int, earlier: int, measured: int, progress: Progress) -> None:
    """Raises FitError where too few frames are at hand to say how far good parts lie."""
    gone = f"of {earlier} frames that taught {recipe.id} {absent} are no longer where they were"
    if measured < MINIMUM_GOOD_FRAMES:
        raise FitError(
            f"{gone}, and a limit needs {MINIMUM_GOOD_FRAMES} frames that can be measured, not {measured}; "
            "put the old images back, give their folder too, or give more new ones"
        )
    progress.note(
        f"{gone}: what they taught stays, but the limit, and what it proves, rest on the {measured} others"
    )


def _is_there(frame: GoodFrame) -> bool:
    """The same picture, under its old name."""
    try:
        return frame_digest(read_image(frame.path)) == frame.digest
    except (FrameError, OSError):
        return False


def _feature_graph(recipe: Recipe) -> ov.Model:
    """From a frame to embeddings, cut out of the recipe's own graph."""
    model = ov.Core().read_model(recipe.model_path)
    outputs = (output for node in model.get_ordered_ops() for output in node.outputs())
    embeddings = next(output for output in outputs if "embeddings" in output.get_names())
    return ov.Model([op.result(embeddings)], model.get_parameters(), "features")


def _folds(good: GoodFrames, kind: Kind, options: FitOptions) -> Folds:
    """As the fit's where the new frames suffice; whatever is held out, the earlier frames teach."""
    how = kind.folds(options.folds, len(good))
    if how.isdigit() and int(how) > len(good):
        how = "loo"
    if how != "run":
        return choose_folds(good, how, options.augment)
    runs = np.unique([frame.run for frame in good.frames], return_inverse=True)[1]
    return _of_frames(runs.astype(np.int64), 1 + options.augment)


def _of_frames(fold: Indices, repeat: int) -> Folds:
    return Folds(np.repeat(fold, repeat), np.arange(len(fold) * repeat) % repeat == 0)
