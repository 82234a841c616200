"""calibrate fit: from known-good frames to a recipe, in the order in which it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import openvino as ov

from calibrate.augment import augmented, marked
from calibrate.backbones import Backbone
from calibrate.ensemble import check, level_tiles
from calibrate.folds import Folds, Indices, choose_folds
from calibrate.graph import Head, Reduction, feature_model, recipe_model, strides, valid_cells
from calibrate.images import GoodFrame, GoodFrames, collect_good_frames
from calibrate.kinds import Fitted, Kind, Learned, open_kind
from calibrate.learned import LEARNED, Earlier, keep
from calibrate.levels import Levels, level, plain
from calibrate.options import Estimate, FitOptions
from calibrate.progress import Progress
from calibrate.publish import publish
from calibrate.quantise import ALREADY, require_nncf, rest_precision, share_in_8_bits
from calibrate.region import Region, make_region
from calibrate.spool import Scratch
from calibrate.tiles import Geometry, Joiner, plan
from inspectord.errors import FitError
from inspectord.frame import Pixels
from inspectord.inspect import compile_model
from inspectord.recipe import FrameSpec, Recipe
from inspectord.sources.files import read_image

if TYPE_CHECKING:
    from calibrate.eight_bits import Loss

GOLDEN_FRAMES = 5
KEEP_MB = 200  # kept without being asked: PaDiM's default takes 42, ResNet-18's map of 64 x 64 takes 170


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first frame is fitted."""

    options: FitOptions
    good: GoodFrames
    region: Region
    geometry: Geometry
    kind: Kind
    backbone: Backbone
    reduction: Reduction
    graph: ov.Model  # frame to embeddings
    folds: Folds
    earlier: Earlier | None = None  # what `calibrate extend` adds the frames to
    rest: Literal["f32", "bf16", "f16"] | None = None  # int8: what stays in floating point computes in this
    loss: Loss | None = None  # int8: what it costs

    @property
    def frame(self) -> FrameSpec:
        return _frame_spec(self.good)

    @property
    def hint(self) -> str:
        """OpenVINO's precision; 8 bits are written in the graph."""
        return self.rest or self.options.precision

    @property
    def positions(self) -> int:
        rows, columns = self.geometry.tile_grid
        return self.geometry.tiles * rows * columns

    @property
    def samples(self) -> int:
        """Frames with their augmented copies."""
        return len(self.good) * (1 + self.options.augment)

    @property
    def measured(self) -> Indices:
        """Frames that have a held-out score, in the order of these."""
        return np.flatnonzero(self.folds.measured) // (1 + self.options.augment)

    @property
    def taught(self) -> list[GoodFrame]:
        """All frames that ever taught the recipe; those whose images are gone come last."""
        return [*self.good.frames, *(self.earlier.absent_frames if self.earlier else [])]

    @property
    def fresh(self) -> npt.NDArray[np.bool_]:
        """Samples that no earlier fit has learned, (samples,)."""
        known = {frame.digest for frame in self.earlier.frames} if self.earlier else set()
        new = [frame.digest not in known for frame in self.good.frames]
        return np.repeat(new, 1 + self.options.augment)

    @property
    def kept_mb(self) -> float:
        """What of the fit the recipe would keep, so that frames can be added; 0 where they can't."""
        return self.kind.kept_mb(self)

    @property
    def keeps(self) -> bool:
        if self.options.extendable is None:
            return 0 < self.kept_mb <= KEEP_MB
        return self.options.extendable

    def sample(self, number: int) -> Pixels:
        """A good frame, each followed by its augmented copies; behind all, the marked one and the carried."""
        if number == self.samples:
            return self.marked()
        if number > self.samples:
            return read_image(self.carried[number - self.samples - 1])
        index, copy = divmod(number, 1 + self.options.augment)
        pixels = self.good.read(index)
        if copy == 0:
            return pixels
        digest = self.good.frames[index].digest
        return augmented(self.region.hidden(pixels), digest, copy - 1, self.options.seed)

    @property
    def golden(self) -> Indices:
        """Good frames, spread evenly, whose scores every start of the daemon repeats."""
        return np.unique(np.linspace(0, len(self.good) - 1, GOLDEN_FRAMES).astype(np.int64))

    @property
    def carried(self) -> list[Path]:
        """Some golden frames of the recipe that is extended, where frames that taught it are gone."""
        if self.earlier is None or not self.earlier.absent:
            return []
        golden = self.earlier.golden
        return [golden[i] for i in np.unique(np.linspace(0, len(golden) - 1, GOLDEN_FRAMES).astype(np.int64))]

    @property
    def embedded(self) -> int:
        """All that sample() knows."""
        return self.samples + 1 + len(self.carried)

    def marked(self) -> Pixels:
        """A good frame with a square that no limit should let pass; repeated like the golden ones."""
        return marked(self.good.read(0), self.region)

    @property
    def checked(self) -> Indices:
        """Samples whose scores the graph must repeat: golden frames, carried ones, last the marked one."""
        return np.concatenate(
            [
                self.golden * (1 + self.options.augment),
                np.arange(self.samples + 1, self.embedded),
                [self.samples],
            ]
        )


def prepare(options: FitOptions, progress: Progress) -> Plan:
    """Read and check the frames, choose the geometry, build the feature graph.

    Raises FitError or FrameError for whatever makes a fit impossible, before any long work.
    """
    kind = _kind(options)
    backbone = kind.backbone(options)
    good = collect_good_frames(options.folders, options.letterbox, options.skip_bad, progress)
    folds = choose_folds(good, kind.folds(options.folds, len(good)), options.augment)
    region = make_region(good.shape, options.roi, options.ignore_png, options.ignore_polygons)
    steps, channels = strides(backbone, good.shape[2])
    geometry = plan(
        region.roi,
        cell=min(steps),
        multiple=math.lcm(*steps),
        resize=options.resize,
        tile=options.tile,
        overlap=options.overlap,
        grid=options.grid,
    )
    check(options, kind, geometry)
    reduction = kind.reduction(channels, options)
    graph = feature_model(
        _frame_spec(good), geometry, backbone, reduction, region.ignored, kind.locally_aware
    )
    fixed = Plan(options, good, region, geometry, kind, backbone, reduction, graph, folds)
    if options.precision != "int8":
        return fixed
    if share_in_8_bits(graph) < ALREADY:
        require_nncf()
    return replace(fixed, rest=rest_precision(kind.precisions, options.device))


def _kind(options: FitOptions) -> Kind:
    kind = open_kind(options.model)
    if options.precision not in (*kind.precisions, "int8"):
        raise FitError(
            f"--model {kind.name} needs --precision {' or '.join(kind.precisions)}, got {options.precision}: "
            "the distances of its patches would be lost in rounding"
        )
    return kind


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
    cost = plan.kind.cost(plan, peak_mb=_peak_mb())
    return Estimate(
        frames=len(plan.good),
        positions=plan.positions,
        dimensions=plan.reduction.dimensions,
        frame_ms=frame_s * 1e3,
        recipe_mb=cost.recipe_mb,
        kept_mb=plan.kept_mb if plan.keeps else 0.0,
        disk_mb=cost.disk_mb + (plan.kept_mb if plan.keeps else 0.0),
        memory_mb=cost.memory_mb,
        seconds=plan.samples * frame_s * 1.3 + cost.seconds + _int8_seconds(plan, frame_s, cost.seconds),
        cell_px=plan.geometry.cell / plan.geometry.scale,
        about=cost.about,
    )


def _int8_seconds(plan: Plan, frame_s: float, learning_s: float) -> float:
    if plan.options.precision != "int8":
        return 0.0
    from calibrate.eight_bits import seconds

    return seconds(plan, frame_s, learning_s)


def _peak_mb() -> float:
    """Of this process since its program started; ru_maxrss would know the parent's too."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _frame_seconds(plan: Plan) -> float:
    request, frame = _request(plan), plan.good.read(0)[None]
    request.infer([frame])
    began = time.perf_counter()
    request.infer([frame])
    return time.perf_counter() - began


def fit(plan: Plan, progress: Progress) -> Recipe:
    """Fit, calibrate the limit, build the graph, and publish a new recipe version that passed its gate."""
    plan = plan.kind.trained(plan, progress)
    if plan.options.precision == "int8" and plan.earlier is None:  # else the graph is so already
        from calibrate.eight_bits import in_eight_bits

        plan = in_eight_bits(plan, progress)
    with Scratch() as folder:
        model, fitted = modelled(plan, folder, progress)
        return publish(plan, model, fitted, folder, progress)


def modelled(plan: Plan, folder: Path, progress: Progress) -> tuple[ov.Model, Fitted]:
    """The recipe's graph, which reads files in folder until it is saved, and what its statistics say."""
    joiner = _joiner(plan)
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
        return learned.head, None, plain(learned, joiner)
    if plan.options.normalise == "tile":
        by_tile, fitted = level_tiles(learned, joiner, plan.folds, progress)
        return by_tile.over(learned.head), None, fitted
    levels, fitted = level(learned, joiner, plan.folds, progress)
    return learned.head, levels, fitted


def _embeddings(plan: Plan, progress: Progress) -> Iterator[npt.NDArray[np.float32]]:
    """Embeddings (positions, d) of the samples that the kind needs.

    One frame a call: the batch never changes what is computed.
    """
    request = _request(plan)
    for number in progress.track(plan.kind.needs(plan).tolist(), "extracting features"):
        request.infer([plan.sample(number)[None]])
        embeddings = request.get_output_tensor(0).data
        if not np.isfinite(embeddings).all():
            raise FitError("the backbone's features are not finite; use --precision f32, or other weights")
        yield embeddings


def _frame_spec(good: GoodFrames) -> FrameSpec:
    height, width, channels = good.shape
    return FrameSpec(
        width=width,
        height=height,
        pixel_format="Mono8" if channels == 1 else "BGR8",
        letterbox=good.letterboxed,
    )


def _joiner(plan: Plan) -> Joiner:
    valid = valid_cells(plan.geometry, plan.region.ignored)
    sigma = plan.options.smoothing_px / plan.geometry.cell
    return Joiner(plan.geometry, valid, sigma, plan.options.top_tiles)
