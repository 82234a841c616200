"""calibrate fit: from known-good frames to a recipe, in the order in which it happens."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from calibrate import padim
from calibrate.augment import augmented, marked
from calibrate.backbones import Backbone, open_backbone
from calibrate.folds import Folds, choose_folds
from calibrate.graph import Reduction, feature_model, recipe_model, strides, valid_cells
from calibrate.heads import WhiteningWriter, is_packed, stored_values
from calibrate.images import GoodFrames, collect_good_frames
from calibrate.options import Estimate, FitOptions
from calibrate.progress import Progress
from calibrate.publish import Fitted, publish
from calibrate.region import Region, make_region
from calibrate.spool import Scratch, Spool
from calibrate.tiles import Geometry, Joiner, plan
from inspectord.errors import FitError
from inspectord.frame import Pixels
from inspectord.inspect import compile_model
from inspectord.recipe import FrameSpec, Recipe

DIMENSIONS = 100  # Defard et al. 2021, section IV: ResNet-18
GOLDEN_FRAMES = 5


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first frame is fitted."""

    options: FitOptions
    good: GoodFrames
    region: Region
    geometry: Geometry
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
    def golden(self) -> npt.NDArray[np.int64]:
        """Good frames, spread evenly, whose scores every start of the daemon repeats."""
        return np.unique(np.linspace(0, len(self.good) - 1, GOLDEN_FRAMES).astype(np.int64))

    def marked(self) -> Pixels:
        """A good frame with a square that no limit should let pass; repeated like the golden ones."""
        return marked(self.good.read(0), self.region)


def prepare(options: FitOptions, progress: Progress) -> Plan:
    """Read and check the frames, choose the geometry, build the feature graph.

    Raises FitError or FrameError for whatever makes a fit impossible, before any long work.
    """
    backbone = open_backbone(options.backbone, options.weights, options.layers)
    good = collect_good_frames(options.folders, options.letterbox, options.skip_bad, progress)
    folds = choose_folds(good, options.folds, options.augment)
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
    reduction = padim.reduce_dimensions(
        channels, options.dimensions or DIMENSIONS, options.reduction, options.seed
    )
    graph = feature_model(_frame_spec(good), geometry, backbone, reduction, region.ignored)
    return Plan(options, good, region, geometry, backbone, reduction, graph, folds)


def _request(plan: Plan) -> ov.InferRequest:
    """The feature graph, compiled as the recipe will run; its memory goes with the request."""
    options = plan.options
    compiled = compile_model(plan.graph, options.device, options.precision, options.threads)
    return compiled.create_infer_request()


def estimate(plan: Plan) -> Estimate:
    """Time and memory of the fit; times one frame on this box, and sees what memory its inference takes."""
    frame_s = _frame_seconds(plan)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    d, p, n = plan.reduction.dimensions, plan.positions, plan.samples
    packed = is_packed(p, d)
    recipe = p * stored_values(d, packed) * (2 if packed else 4)
    factorisations = 2 if plan.folds.leave_one_out else 1 + len(np.unique(plan.folds.of_frame))
    operations = p * d * d * (2 * n * factorisations + d * factorisations)
    return Estimate(
        frames=len(plan.good),
        positions=p,
        dimensions=d,
        frame_ms=frame_s * 1e3,
        recipe_mb=recipe / 1e6,
        disk_mb=(4 * n * p * (d + 1) + 2 * recipe) / 1e6,
        # The gate loads the whole recipe; measured: packed matrices once, plain ones twice.
        memory_mb=max(plan.options.memory_mb, peak_mb + recipe / 1e6 * (1.2 if packed else 2)),
        seconds=n * frame_s * 1.3 + operations / 15e9 + p * d * d * 5e-8 + 3,
        cell_px=plan.geometry.cell / plan.geometry.scale,
    )


def _frame_seconds(plan: Plan) -> float:
    request, frame = _request(plan), plan.good.read(0)[None]
    request.infer([frame])
    began = time.perf_counter()
    request.infer([frame])
    return time.perf_counter() - began


def fit(plan: Plan, progress: Progress) -> Recipe:
    """Fit, calibrate the limit, build the graph, and publish a new recipe version that passed its gate."""
    with Scratch() as folder:
        writer, held_out, checked = _fit_gaussians(plan, folder, progress)
        joiner = _joiner(plan)
        tracked = progress.track(range(held_out.shape[0]), "scoring held-out frames")
        fitted = Fitted(
            held_out=np.array([joiner(held_out.read_frame(i)).max() for i in tracked]),
            checked=np.array([joiner(checked.read_frame(i)).max() for i in range(checked.shape[0])]),
        )
        held_out.close()
        checked.close()
        return publish(plan, recipe_model(plan.graph, writer, joiner), fitted, folder, progress)


def _fit_gaussians(plan: Plan, folder: Path, progress: Progress) -> tuple[WhiteningWriter, Spool, Spool]:
    options, p, d = plan.options, plan.positions, plan.reduction.dimensions
    budget = max(50e6, (options.memory_mb * 1e6 - 600e6) / 2)
    block = padim.block_width(plan.samples, d, budget)
    features = Spool(folder, plan.samples + 1, p, d, block)
    for index, embeddings in enumerate(_embeddings(plan, progress)):
        features.write_frame(index, embeddings)
    writer = WhiteningWriter(folder, p, d)
    held_out = Spool(folder, int(plan.folds.measured.sum()), p, 1, block)
    look_at = np.append(plan.golden * (1 + options.augment), plan.samples)
    checked = Spool(folder, len(look_at), p, 1, block)
    blocks = progress.track(features.blocks(), "fitting positions")
    padim.fit_positions(features, blocks, options.epsilon, plan.folds, look_at, writer, held_out, checked)
    features.close()
    return writer, held_out, checked


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
