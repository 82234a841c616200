"""What a fit decides before any frame teaches: the frames, the region, the tiles, the graph of features."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import openvino as ov

from calibrate import adapt, damping, surroundings, tiles
from calibrate.augment import augmented, marked, relit
from calibrate.backbones import BUNDLED, Backbone, frame_side
from calibrate.ensemble import check, check_workers
from calibrate.folds import Folds, Indices, choose_folds, evenly
from calibrate.graph import Reduction, light_model, strides
from calibrate.images import GoodFrame, GoodFrames, collect_good_frames
from calibrate.kinds import Kind, open_kind
from calibrate.learned import Earlier
from calibrate.light import FRAMES, RELIT, Light, seen_share
from calibrate.options import FitOptions
from calibrate.progress import Progress
from calibrate.quantise import ALREADY, require_nncf, rest_precision, share_in_8_bits
from calibrate.region import Region, make_region
from inspectord.errors import FitError
from inspectord.frame import Pixels
from inspectord.linux import peak_mb
from inspectord.recipe import FrameSpec
from inspectord.sources.files import read_image

if TYPE_CHECKING:
    from calibrate.eight_bits import Loss

GOLDEN_FRAMES = 5
MOST_HIDDEN = 0.5  # of the region; where more is ignored, a fit says so
DAMPED = "damped"  # a recipe's parameter
SMOOTHING_PX = 4.0
KEEP_MB = 200  # kept without being asked: PaDiM's default takes 42, ResNet-18's map of 64 x 64 takes 170


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first frame is fitted."""

    options: FitOptions
    good: GoodFrames
    region: Region
    geometry: tiles.Geometry
    kind: Kind
    backbone: Backbone
    reduction: Reduction
    graph: ov.Model  # frame to embeddings
    folds: Folds
    around: bool = False  # features are taken less what their surroundings foretell
    light: Light | None = None  # frames are brought to this
    undamped: bool = False  # though they are, features are taken as they are
    unasked: bool = False  # the kind is the usual one
    instead: str = ""  # why it is another one, though none was asked for
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
        return self.geometry.positions

    @property
    def smoothing_px(self) -> float:
        """Gaussian sigma on the map, in scaled pixels."""
        asked = self.options.smoothing_px
        return usual_smoothing_px(self.geometry.cell) if asked is None else asked

    @property
    def damps(self) -> bool:
        """Whether features are damped along what other light does to them."""
        few = self.reduction.dimensions <= damping.MOST
        return self.light is not None and self.kind.by_distance and few and not self.undamped

    @property
    def damping_bytes(self) -> int:
        """What learning that takes: a frame under other light, and features of a few."""
        frame = math.prod(self.frame.shape)
        return self.damps * (16 * frame + 32 * self.positions * self.reduction.dimensions)

    @property
    def learns_light(self) -> Indices:
        """Samples that teach it, each with a copy; none where the graph knows, or is not to."""
        if not self.damps:
            return np.arange(0)
        return evenly(np.arange(len(self.good)), FRAMES) * (1 + self.options.augment)

    @property
    def told_of_light(self) -> dict[str, float | bool]:
        """How much of another light is made good, for recipe.toml."""
        if self.earlier is not None:
            known = self.earlier.parameters
            return {name: value for name, value in known.items() if name in (*RELIT, DAMPED)}
        damped = {DAMPED: True} if self.damps else {}
        return {} if self.light is None else self.light.parameters | damped

    @property
    def learns_around(self) -> Indices:
        """Samples that teach what surroundings foretell; none where the graph knows, or is not to."""
        if not self.around or self.earlier is not None:
            return np.arange(0)
        most = surroundings.teaching(self.reduction.dimensions, self.geometry)
        return evenly(np.arange(len(self.good)), most) * (1 + self.options.augment)

    @property
    def samples(self) -> int:
        """Frames with their augmented copies."""
        return len(self.good) * (1 + self.options.augment)

    @property
    def measured(self) -> Indices:
        """Frames that have a held-out score, in the order of these."""
        return np.flatnonzero(self.folds.measured) // (1 + self.options.augment)

    @property
    def measured_names(self) -> list[str]:
        """Paths of these frames, as the operator has them."""
        return [str(self.good.frames[index].path) for index in self.measured]

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

    def relit(self, number: int) -> Pixels:
        """A good frame, by its sample's number, under other light."""
        frame = self.good.frames[number // (1 + self.options.augment)]
        return relit(self.sample(number), frame.digest, self.options.seed)

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
        return evenly(np.arange(len(self.good)), GOLDEN_FRAMES)

    @property
    def carried(self) -> list[Path]:
        """Some golden frames of the recipe that is extended, where frames that taught it are gone."""
        if self.earlier is None or not self.earlier.absent:
            return []
        golden = self.earlier.golden
        return [golden[i] for i in evenly(np.arange(len(golden)), GOLDEN_FRAMES)]

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


def usual_smoothing_px(cell: int) -> float:
    """PaDiM's, and at least half a cell of this side in scaled pixels."""
    return max(SMOOTHING_PX, cell / 2)


def prepare(options: FitOptions, progress: Progress, good: GoodFrames | None = None) -> Plan:
    """Read and check the frames, choose the geometry, build the feature graph.

    good are frames that were read and checked before: they teach, instead of all that the folders hold.
    Raises FitError or FrameError for whatever makes a fit impossible, before any long work.
    """
    unasked = options.model == "usual"
    if unasked:
        options = replace(options, model="patchcore")
    adapt.check(options)
    kind, backbone = _opened(options)
    if good is None:
        good = collect_good_frames(
            options.folders, options.letterbox, options.skip_bad, progress, kind.fewest
        )
    wanted = adapt.adapted(options, len(good), progress)
    if wanted is not options:
        plan = _planned(wanted, *_opened(wanted), good, progress)
        if options.adapt != "auto":
            return replace(plan, unasked=unasked)
        try:
            plan.kind.cost(plan, peak_mb())
        except FitError as error:
            progress.note(adapt.not_adapted(options.model, error))
        else:
            return replace(plan, unasked=unasked)
    return replace(_planned(options, kind, backbone, good, progress), unasked=unasked)


def _planned(
    options: FitOptions, kind: Kind, backbone: Backbone, good: GoodFrames, progress: Progress
) -> Plan:
    folds = choose_folds(good, kind.folds(options.folds, len(good)), options.augment)
    region = make_region(good.shape, options.roi, options.ignore_png, options.ignore_polygons)
    if (hidden := region.ignored_fraction) > MOST_HIDDEN:
        why = "; is the mask inverted? Its white pixels don't count" if options.ignore_png else ""
        progress.note(f"{hidden:.0%} of the region is ignored{why}")
    steps, channels = strides(backbone, good.shape[2])
    geometry = tiles.plan(
        region.roi,
        cell=min(steps),
        multiple=math.lcm(*steps),
        resize=options.resize,
        tile=options.tile,
        overlap=options.overlap,
        grid=options.grid,
        side=frame_side(backbone),
    )
    for line in tiles.narrowed(geometry, options.tile or 0):
        progress.note(line)
    check(options, kind, geometry)
    reduction = kind.reduction(channels, geometry.positions, options)
    most = kind.reduction(channels, 1, options).dimensions
    if reduction.dimensions < most:
        progress.note(
            f"of each patch {reduction.dimensions} features are kept instead of {most}, for every frame "
            f"reads the statistics of all {geometry.positions:,} patches; --dimensions keeps more"
        )
    light = _light(options, kind, backbone, good, region, geometry)
    graph = kind.graph(_frame_spec(good), geometry, backbone, reduction, region.ignored, options, light)
    lacking = surroundings.lacking(len(good), reduction.dimensions, geometry)
    around = _around(options, kind, backbone, lacking, progress)
    fixed = Plan(options, good, region, geometry, kind, backbone, reduction, graph, folds, around, light)
    if options.precision != "int8":
        return fixed
    if share_in_8_bits(graph) < ALREADY:
        require_nncf()
    return replace(fixed, rest=rest_precision(kind.precisions, options.device))


def _opened(options: FitOptions) -> tuple[Kind, Backbone]:
    kind = open_kind(options.model)
    if options.precision not in (*kind.precisions, "int8"):
        raise FitError(
            f"--model {kind.name} needs --precision {' or '.join(kind.precisions)}, got {options.precision}: "
            "the distances of its patches would be lost in rounding; or take --model padim"
        )
    backbone = kind.backbone(options)
    check_workers(options, kind)
    return kind, backbone


def _around(options: FitOptions, kind: Kind, backbone: Backbone, lacking: str, progress: Progress) -> bool:
    """Whether features are taken less what their surroundings foretell.

    By itself where that is ours to decide. Raises FitError where it is asked for and can't be.
    """
    if kind.surroundings == "never":
        lacking = f"{kind.name} has a network that sees them; leave --surroundings out"
    if options.surroundings and lacking:
        raise FitError(f"what surroundings foretell can't be learned: {lacking}")
    if options.surroundings is not None:
        return options.surroundings
    wanted = kind.surroundings == "with ours" and _ours(backbone, options)
    if wanted and lacking:
        progress.note(f"patches are judged without what their surroundings foretell: {lacking}")
    return wanted and not lacking


def _ours(backbone: Backbone, options: FitOptions) -> bool:
    """Whether how features are used is ours to decide: else it is as the methods' papers say."""
    return backbone.name in BUNDLED and not options.absolute


def _light(
    options: FitOptions,
    kind: Kind,
    backbone: Backbone,
    good: GoodFrames,
    region: Region,
    geometry: tiles.Geometry,
) -> Light | None:
    """That of the good frames, where every frame is brought to it: by itself where that is ours to decide.
    Raises FitError where it is asked for and can't be.
    """
    if options.relight and not kind.relights:
        raise FitError(f"{kind.name} takes every frame as it is; leave --relight out")
    wanted = kind.relights and _ours(backbone, options)
    if not (wanted if options.relight is None else options.relight):
        return None
    frames = (good.read(index) for index in evenly(np.arange(len(good)), FRAMES).tolist())
    measure = light_model(_frame_spec(good), geometry, region.ignored)
    return Light.learn(frames, measure, seen_share(geometry, region.ignored), options.threads)


def _frame_spec(good: GoodFrames) -> FrameSpec:
    height, width, channels = good.shape
    return FrameSpec(
        width=width,
        height=height,
        pixel_format="Mono8" if channels == 1 else "BGR8",
        letterbox=good.letterboxed,
    )
