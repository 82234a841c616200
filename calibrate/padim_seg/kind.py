"""The kind padim-seg: PaDiM's residuals, told apart by small networks that were shown made-up defects.

A segmentation network over differences to what is normal, taught by defects made up on good frames: Yang et
al. 2023, "MemSeg"; Zhang et al. 2023, "DeSTSeg"; Zavrtanik et al. 2021, "DRAEM". Here the differences are
PaDiM's (Defard et al. 2021), whitened at every position, and the backbone stays as it is.

All good frames give the limit, as with padim: they are parted into four, each part seen by Gaussians that
do not know it, as the line's parts will be; one network learns on two of the parts, another on the others. A
frame is judged, held out, by what knows nothing of it; the recipe holds the Gaussians of all frames and both
networks. (A network's Gaussians know the frames that it is asked of, as some of hundreds.) What is made up
are the families of calibrate.pretrain.defects; those of HELD_OUT are never shown, and say when to stop, on
frames of the network's own half that teach it nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from calibrate.adapt import NothingGainedError, refused
from calibrate.backbones import Backbone
from calibrate.folds import Indices
from calibrate.graph import Reduction, position_cells, valid_cells
from calibrate.kinds import ALL_THE_SAME, Cost, Kind, Learned
from calibrate.options import ADAPT_FEWEST, FitOptions
from calibrate.padim import DIMENSIONS, READ_MB, reduce_dimensions
from calibrate.padim_seg.network import WIDTH, Gaussians, SegmentedHead, Segmenter, distances, lengths_of
from calibrate.padim_seg.strikes import Strikes, together, window_pixels
from calibrate.padim_seg.train import Check, Part, Training, batch, checked
from calibrate.pretrain import defects
from calibrate.progress import Progress
from calibrate.spool import Spool
from calibrate.sums import Sums
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan

PARTS, HALVES = 4, ((0, 1), (2, 3))
STEPS, MINUTES = 250, 5.0  # of each network, at most; of both
MORE = 15  # minutes, where those are too few
CHECKS = 4  # of a network's frames one in so many says when to stop
FAR = 0.99  # of the good frames, held out, have no patch that lies farther than what is called far
LEAST = 32  # features of a patch, where every frame's reading of all matrices would take long
BLOCK = 128  # positions whose features are in memory together
LIBRARY_MB = 450  # torch, and what it leaves behind
STRIKING = 11  # times the frames that are struck at once, in three channels of float32, that it takes
LEARNING = 1.5  # times what drawing takes, with the network's part


class PadimSeg(Kind):
    """It trains once, so its recipes can't be extended."""

    name, locally_aware = "padim-seg", False
    precisions: tuple[str, ...] = ("f32", "bf16", "f16")
    fewest = 1  # folds ask for more, and say why

    def backbone(self, options: FitOptions) -> Backbone:
        """Raises FitError for options that this kind has nothing for."""
        if flag := refused(options):
            raise FitError(f"{flag} can't be had with --model {self.name}; leave it out")
        if options.threads:
            torch.set_num_threads(options.threads)
        return super().backbone(options)

    def folds(self, how: str, frames: int) -> str:
        """In four parts. Raises FitError where there are too few, or another number is asked for."""
        if how not in ("loo", str(PARTS)):
            raise FitError(f"{self.name} holds its frames out in {PARTS} parts; leave --folds {how} out")
        if frames < ADAPT_FEWEST:
            raise FitError(
                f"{frames} good images are too few for {self.name}, at least {ADAPT_FEWEST} are needed: its "
                "Gaussians must do without a quarter of them, on which defects are made up; grab more with "
                "`calibrate capture`, or take --model padim"
            )
        return str(PARTS)

    def reduction(self, channels: tuple[int, ...], positions: int, options: FitOptions) -> Reduction:
        readable = math.isqrt(int(READ_MB * 1e6 / (4 * positions)))
        dimensions = options.dimensions or min(DIMENSIONS, max(LEAST, readable))
        return reduce_dimensions(channels, dimensions, options.reduction, options.seed)

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Raises FitError where it would take more memory than it may."""
        p, d = plan.positions, plan.reduction.dimensions
        roots = 4 * p * d * (d + 1)
        maps = 4 * p * (batch(p) * (6 * d + 8 * WIDTH) + 3 * checked(p) * d)
        block = 8 * min(BLOCK, p) * d * (3 * plan.samples + 6 * d)
        roi = plan.region.roi
        struck = STRIKING * 12 * window_pixels(roi) * min(batch(p), together(roi))
        # Those of two parts while a network learns on them, or what the gate loads: compiled, and the file's.
        memory = peak_mb + LIBRARY_MB + (2 * roots + max(maps + struck, block)) / 1e6
        if memory > plan.options.memory_mb:
            raise FitError(
                f"{self.name} would take {memory:.0f} MB for {p:,} patches of {d} features, --memory-mb "
                f"allows {plan.options.memory_mb}; give --memory-mb {math.ceil(memory)}, fewer --dimensions, "
                "or take --model padim without --adapt"
            )
        training = len(HALVES) * (plan.options.steps or STEPS) * _batch_seconds(plan) * LEARNING
        return Cost(
            recipe_mb=roots / 1e6,
            disk_mb=(4 * plan.embedded * p * d + (PARTS + 1) * roots) / 1e6,
            memory_mb=memory,
            seconds=min(_seconds(plan.options), training) + p * d**3 * (PARTS + 1) * 3e-9 + 5,
            about="two networks are shown made-up defects on good frames; each learns on the half of them "
            "that the other one is asked of",
        )

    def learn(self, plan: Plan, embeddings: Iterable[Floats], folder: Path, progress: Progress) -> Learned:
        p, d = plan.positions, plan.reduction.dimensions
        features = Spool(folder, plan.embedded, p, d, min(BLOCK, p))
        for index, values in enumerate(embeddings):
            features.write_frame(index, values)
        parted, whole = _gaussians(plan, features, folder, progress)
        part_of, measured = plan.folds.of_frame, np.flatnonzero(plan.folds.measured)
        valid = valid_cells(plan.geometry, plan.region.ignored)[tuple(position_cells(plan.geometry).T)]
        farthest = np.array(
            [
                lengths_of(parted[part_of[i]], features.read_frame(i))[valid].max()
                for i in progress.track(measured.tolist(), "measuring held-out frames")
            ]
        )
        if not farthest.any():
            raise FitError(ALL_THE_SAME)
        strikes = Strikes(plan)
        trained = [_trained(plan, strikes, half, parted, progress) for half in HALVES]
        _check_gain(plan, trained, progress)
        networks = tuple(training.kept for training in trained)

        # What is called far must not know the frame that is judged by it.
        far = [float(np.quantile(farthest[part_of[measured] != part], FAR)) for part in range(PARTS)]
        head = SegmentedHead(whole, networks, float(np.quantile(farthest, FAR)), plan.geometry)

        def held_out(sample: int) -> Floats:
            part = int(part_of[sample])
            stranger = next(number for number, half in enumerate(HALVES) if part not in half)
            return distances(parted[part], (networks[stranger],), far[part], features.read_frame(sample))

        away = _spooled(folder, p, measured, held_out)
        repeated = _spooled(
            folder, p, plan.checked, lambda number: head.distances(features.read_frame(number))
        )
        features.close()
        parameters = {
            "epsilon": plan.options.epsilon,
            "steps": ", ".join(str(training.kept_step) for training in trained),
            "far": head.far,
        }
        return Learned(head, away, repeated, parameters)


def _spooled(folder: Path, positions: int, samples: Indices, judged: Callable[[int], Floats]) -> Spool:
    spool = Spool(folder, len(samples), positions, 1, positions)
    for number, sample in enumerate(samples.tolist()):
        spool.write_frame(number, judged(sample)[:, None])
    return spool


def _seconds(options: FitOptions) -> float:
    """That both networks may take together."""
    return 60 * (options.minutes or (math.inf if options.steps else MINUTES))


def _batch_seconds(plan: Plan) -> float:
    """What drawing one batch takes on this box now, the second time."""
    strikes, samples = Strikes(plan), np.arange(batch(plan.positions))
    rng = np.random.default_rng(0)
    taken = 0.0
    for _ in range(2):
        began = time.perf_counter()
        strikes.draw(samples, samples[::-1].copy(), rng, defects.FAMILIES, [1.0] * len(samples))
        taken = time.perf_counter() - began
    return taken


def _gaussians(
    plan: Plan, features: Spool, folder: Path, progress: Progress
) -> tuple[tuple[Gaussians, ...], Gaussians]:
    """Those that know nothing of each part, and those of all good frames."""
    p, d, part_of = plan.positions, plan.reduction.dimensions, plan.folds.of_frame
    *parts, whole = (Gaussians.empty(folder, p, d) for _ in range(PARTS + 1))
    for start, width in progress.track(features.blocks(), "fitting positions"):
        x = features.read_block(start, width)[: len(part_of)].transpose(1, 0, 2).astype(np.float64)
        with threadpool_limits(limits=1):  # more are slower for matrices this small, and give other bits
            known = Sums.of(x)
            whole.write(start, known, plan.options.epsilon)
            for part, gaussians in enumerate(parts):
                gaussians.write(start, known.minus(Sums.of(x[:, part_of == part])), plan.options.epsilon)
    return tuple(parts), whole


def _trained(
    plan: Plan, strikes: Strikes, half: tuple[int, ...], parted: tuple[Gaussians, ...], progress: Progress
) -> Training:
    """A run over, of a network that has seen nothing of the other half."""
    options, steps = plan.options, plan.options.steps or STEPS
    began = time.monotonic()
    parts, asked = [], []
    copies = 1 + options.augment
    for part in half:
        members = np.flatnonzero(plan.folds.of_frame == part)
        checks = members // copies // PARTS % CHECKS == 0
        parts.append(Part(members[~checks], parted[part]))
        asked.append(Part(members[checks & (members % copies == 0)], parted[part]))
    seed = (options.seed, half[0])
    check = Check.of(strikes, asked, checked(plan.positions), seed)
    torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
    segmenter = Segmenter(plan.geometry, plan.reduction.dimensions)
    until = began + _seconds(options) / len(HALVES)
    training = Training(segmenter, strikes, parts, check, steps, seed, until)
    for _ in progress.track(training.run(), "showing made-up defects, steps", steps):
        pass
    if training.late:
        progress.note(
            f"warning: time was up after step {training.kept_step} of {steps}, so the same seed may give "
            f"another recipe; give it more with --adapt {MORE}, or --model {plan.kind.name} --minutes {MORE}"
        )
    return training


def _check_gain(plan: Plan, trained: list[Training], progress: Progress) -> None:
    """Say what the networks find. Raises NothingGainedError where it is no more, and auto was wanted."""
    found = float(np.mean([training.found for training in trained]))
    before = float(np.mean([training.by_distance for training in trained]))
    said = (
        "of made-up defects of kinds that the networks were not shown they find, as image AUROC, "
        f"{found:.3f}, distances alone {before:.3f}"
    )
    if found > before:
        progress.note(said)
    elif plan.options.adapt == "auto":
        raise NothingGainedError(said)
    else:
        progress.note(f"warning: nothing is gained here: {said}; --model padim without --adapt is as good")
