"""calibrate fit: from known-good frames to a recipe, in the order in which it happens."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov

from calibrate.augment import augmented, marked
from calibrate.backbones import Backbone, open_backbone
from calibrate.folds import Folds, Indices, choose_folds
from calibrate.graph import Reduction, feature_model, recipe_model, strides, valid_cells
from calibrate.images import GoodFrames, collect_good_frames
from calibrate.kinds import Kind, open_kind
from calibrate.levels import level, plain
from calibrate.options import Estimate, FitOptions
from calibrate.progress import Progress
from calibrate.publish import publish
from calibrate.region import Region, make_region
from calibrate.spool import Scratch
from calibrate.tiles import Geometry, Joiner, plan
from inspectord.errors import FitError
from inspectord.frame import Pixels
from inspectord.inspect import compile_model
from inspectord.recipe import FrameSpec, Recipe

GOLDEN_FRAMES = 5


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

    @property
    def frame(self) -> FrameSpec:
        return _frame_spec(self.good)

    @property
    def positions(self) -> int:
        rows, columns = self.geometry.tile_grid
        return self.geometry.tiles * rows * columns

    @property
    def samples(self) -> int:
        """Frames with their augmented copies."""
        return len(self.good) * (1 + self.options.augment)

    @property
    def golden(self) -> Indices:
        """Good frames, spread evenly, whose scores every start of the daemon repeats."""
        return np.unique(np.linspace(0, len(self.good) - 1, GOLDEN_FRAMES).astype(np.int64))

    def marked(self) -> Pixels:
        """A good frame with a square that no limit should let pass; repeated like the golden ones."""
        return marked(self.good.read(0), self.region)

    @property
    def checked(self) -> Indices:
        """Samples whose scores the graph must repeat: the golden frames and, behind all, the marked one."""
        return np.append(self.golden * (1 + self.options.augment), self.samples)


def prepare(options: FitOptions, progress: Progress) -> Plan:
    """Read and check the frames, choose the geometry, build the feature graph.

    Raises FitError or FrameError for whatever makes a fit impossible, before any long work.
    """
    kind = _kind(options)
    layers = options.layers or kind.layers(options.backbone)
    backbone = open_backbone(options.backbone, options.weights, layers)
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
    reduction = kind.reduction(channels, options)
    graph = feature_model(
        _frame_spec(good), geometry, backbone, reduction, region.ignored, kind.locally_aware
    )
    return Plan(options, good, region, geometry, kind, backbone, reduction, graph, folds)


def _kind(options: FitOptions) -> Kind:
    kind = open_kind(options.model)
    if options.precision not in kind.precisions:
        raise FitError(
            f"--model {kind.name} needs --precision {' or '.join(kind.precisions)}, got {options.precision}: "
            "the distances of its patches would be lost in rounding"
        )
    return kind


def _request(plan: Plan) -> ov.InferRequest:
    """The feature graph, compiled as the recipe will run; its memory goes with the request."""
    options = plan.options
    compiled = compile_model(plan.graph, options.device, options.precision, options.threads)
    return compiled.create_infer_request()


def estimate(plan: Plan) -> Estimate:
    """Time and memory of the fit; times one frame on this box, and sees what memory its inference takes.

    Raises FitError where the model kind foresees that it can't be done.
    """
    frame_s = _frame_seconds(plan)
    cost = plan.kind.cost(plan, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return Estimate(
        frames=len(plan.good),
        positions=plan.positions,
        dimensions=plan.reduction.dimensions,
        frame_ms=frame_s * 1e3,
        recipe_mb=cost.recipe_mb,
        disk_mb=cost.disk_mb,
        memory_mb=cost.memory_mb,
        seconds=plan.samples * frame_s * 1.3 + cost.seconds,
        cell_px=plan.geometry.cell / plan.geometry.scale,
        about=cost.about,
    )


def _frame_seconds(plan: Plan) -> float:
    request, frame = _request(plan), plan.good.read(0)[None]
    request.infer([frame])
    began = time.perf_counter()
    request.infer([frame])
    return time.perf_counter() - began


def fit(plan: Plan, progress: Progress) -> Recipe:
    """Fit, calibrate the limit, build the graph, and publish a new recipe version that passed its gate."""
    joiner = _joiner(plan)
    with Scratch() as folder:
        learned = plan.kind.learn(plan, _embeddings(plan, progress), folder, progress)
        if plan.options.absolute:
            levels, fitted = None, plain(learned, joiner)
        else:
            levels, fitted = level(learned, joiner, plan.folds, progress)
        learned.away.close()
        learned.checked.close()
        return publish(plan, recipe_model(plan.graph, learned.head, joiner, levels), fitted, folder, progress)


def _embeddings(plan: Plan, progress: Progress) -> Iterator[npt.NDArray[np.float32]]:
    """Embeddings (positions, d) of every sample, then of the marked frame.

    One frame a call: the batch never changes what is computed.
    """
    request = _request(plan)
    for _, pixels in zip(
        progress.track(range(plan.samples + 1), "extracting features"), _samples(plan), strict=True
    ):
        request.infer([pixels[None]])
        embeddings = request.get_output_tensor(0).data
        if not np.isfinite(embeddings).all():
            raise FitError("the backbone's features are not finite; use --precision f32, or other weights")
        yield embeddings


def _samples(plan: Plan) -> Iterator[Pixels]:
    """Every good frame, each followed by its augmented copies; the marked frame comes last."""
    for index, frame in enumerate(plan.good.frames):
        pixels = plan.good.read(index)
        yield pixels
        for copy in range(plan.options.augment):
            yield augmented(plan.region.hidden(pixels), frame.digest, copy, plan.options.seed)
    yield plan.marked()


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
    return Joiner(plan.geometry, valid, plan.options.smoothing_px / plan.geometry.cell)
