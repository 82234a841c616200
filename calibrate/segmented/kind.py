"""The kinds padim-seg and patchcore-seg: patches told apart by small networks that were shown defects.

A segmentation network over differences to what is normal, taught by defects made up on good frames: Yang et
al. 2023, "MemSeg"; Zhang et al. 2023, "DeSTSeg"; Zavrtanik et al. 2021, "DRAEM". Here the differences are
residuals, features whitened by Gaussians: of padim-seg PaDiM's (Defard et al. 2021), one at every position;
of patchcore-seg one of all positions, for parts that lie anyhow. What the network gives is multiplied with
how far the patch lies from what is good: the residual's length, or the distance to PatchCore's bank (Roth et
al. 2022). The backbone stays as it is.

All good frames give the limit, as without networks: they are parted into four, each part seen by what is
known without it, as the line's parts will be; one network learns on two of the parts, another on the
others. A frame is judged, held out, by what knows nothing of it; the recipe holds what all frames say and
both networks. (What a network learns with knows the frames that it is asked of, as some of hundreds.) What
is made up are the families of calibrate.pretrain.defects; those of HELD_OUT are never shown, and say when to
stop, on frames of the network's own half that teach it nothing else.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from calibrate.adapt import NothingGainedError, refused
from calibrate.backbones import Backbone
from calibrate.candidates import counting
from calibrate.kinds import ALL_THE_SAME, Cost, Kind, Learned, check_memory
from calibrate.options import ADAPT_FEWEST, FitOptions
from calibrate.pretrain import defects
from calibrate.progress import Progress
from calibrate.segmented.network import WIDTH, Known, SegmentedHead, Segmenter, distances
from calibrate.segmented.strikes import Strikes, together, window_pixels
from calibrate.segmented.train import LATEST, STEPS_A_DRAW, Check, Part, Trained, Training, batch, checked
from calibrate.spool import Spool
from calibrate.tiles import Doubles
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan

PARTS, HALVES = 4, ((0, 1), (2, 3))
STEPS, MINUTES = 500, 5.0  # of each network, at most; of both
MORE = 15  # minutes, where those are too few
CHECKS = 4  # of a network's frames one in so many says when to stop
FAR = 0.99  # of the good frames, held out, have no patch that lies farther than what is called far
LIBRARY_MB = 450  # torch, and what it leaves behind
STRIKING = 11  # times the frames that are struck at once, in three channels of float32, that it takes
LEARNING = 1.5  # times what drawing takes, with the network's part


class Segmented(Kind):
    """What both have in common. They train once, so their recipes can't be extended."""

    plain: str  # the kind without networks
    least: float  # see Segmenter
    fewest = 1  # folds ask for more, and say why

    @abstractmethod
    def known(
        self, plan: Plan, embeddings: Iterable[Floats], folder: Path, progress: Progress
    ) -> tuple[Spool, tuple[Known, ...], Known]:
        """All features, what is known without each part, and what of all good frames."""

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
                f"{frames} good images are too few for {self.name}, at least {ADAPT_FEWEST} are needed: what "
                "it knows must do without a quarter of them, on which defects are made up; grab more with "
                f"`calibrate capture`, or take --model {self.plain}"
            )
        return str(PARTS)

    def afforded(self, plan: Plan, learning_mb: float, cost: Cost) -> Cost:
        """A cost without networks, with theirs; learning_mb is what is in memory while they learn.

        Raises FitError where it would take more memory than it may.
        """
        p, d = plan.positions, plan.reduction.dimensions
        roi = plan.region.roi
        # What a network learns from and is asked of; while that is brought together there is more of it.
        frames = max(LATEST * batch(p) + 3 * checked(p), 6 * checked(p))
        maps = 4 * p * (batch(p) * (6 * d + 8 * WIDTH) + frames * (d + 1))
        struck = STRIKING * 12 * window_pixels(roi) * min(batch(p), together(roi))
        memory = LIBRARY_MB + max(cost.memory_mb, learning_mb + (maps + struck) / 1e6)
        check_memory(
            f"{self.name} of {p:,} patches of {d} features",
            memory,
            plan.options.memory_mb,
            f"fewer --dimensions, or take --model {self.plain} without --adapt",
        )
        training = len(HALVES) * (plan.options.steps or STEPS) / STEPS_A_DRAW * _batch_seconds(plan)
        return Cost(
            recipe_mb=cost.recipe_mb,
            disk_mb=cost.disk_mb,
            memory_mb=memory,
            seconds=min(_seconds(plan.options), training * LEARNING) + cost.seconds,
            about="two networks are shown made-up defects on good frames; each learns on the half of them "
            "that the other one is asked of" + (f"; {cost.about}" if cost.about else ""),
        )

    def learn(self, plan: Plan, embeddings: Iterable[Floats], folder: Path, progress: Progress) -> Learned:
        features, parted, whole = self.known(plan, embeddings, folder, progress)
        part_of, measured = plan.folds.of_frame, np.flatnonzero(plan.folds.measured)
        away, counts = Spool(folder, len(measured), plan.positions, 1, plan.positions), counting(plan)
        farthest = np.zeros(len(measured))
        for number, sample in progress.track(list(enumerate(measured.tolist())), "measuring held-out frames"):
            lies = parted[part_of[sample]].away_of(features.read_frame(sample))
            away.write_frame(number, lies[:, None])
            farthest[number] = lies[counts].max(initial=0)
        self.check_told(plan, whole, farthest)
        # What is called far must not know the frame that is judged by it.
        far = [_far(farthest[part_of[measured] != part]) for part in range(PARTS)]
        of_halves = [_far(farthest[np.isin(part_of[measured], half)]) for half in HALVES]
        if not min(*far, *of_halves) > 0:
            raise FitError(ALL_THE_SAME)
        strikes = Strikes(plan)
        trained = [
            self._trained(plan, strikes, half, parted, each, progress)
            for half, each in zip(HALVES, of_halves, strict=True)
        ]
        self._check_gain(plan, trained, progress)
        networks = tuple(each.network for each in trained)
        head = SegmentedHead(whole, networks, _far(farthest), plan.geometry)
        for number, sample in progress.track(list(enumerate(measured.tolist())), "asking the other network"):
            part = int(part_of[sample])
            stranger = next(number for number, half in enumerate(HALVES) if part not in half)
            lies = away.read_frame(number)[:, 0] / np.float32(far[part])
            found = distances(
                parted[part].gaussians, (networks[stranger],), lies, features.read_frame(sample)
            )
            away.write_frame(number, found[:, None])
        repeated = Spool(folder, len(plan.checked), plan.positions, 1, plan.positions)
        for number, sample in enumerate(plan.checked.tolist()):
            repeated.write_frame(number, head.distances(features.read_frame(sample))[:, None])
        features.close()
        parameters = {
            **self.parameters(plan, whole),
            "steps": ", ".join(str(each.step) for each in trained),
            "far": head.far,
        }
        return Learned(head, away, repeated, parameters)

    def _trained(
        self,
        plan: Plan,
        strikes: Strikes,
        half: tuple[int, ...],
        parted: tuple[Known, ...],
        far: float,
        progress: Progress,
    ) -> Trained:
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
        check = Check.of(strikes, asked, checked(plan.positions), seed, far)
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        segmenter = Segmenter(plan.geometry, plan.reduction.dimensions, self.least)
        until = began + _seconds(options) / len(HALVES)
        training = Training(segmenter, strikes, parts, check, steps, seed, until)
        for _ in progress.track(_percents(training, steps, until), "showing made-up defects, percent", 100):
            pass
        if training.late:
            progress.note(
                f"warning: time was up after step {training.kept_step} of {steps}, so the same seed may give "
                f"another recipe; give it more with --adapt {MORE}, or --model {self.name} --minutes {MORE}"
            )
        return training.trained

    def _check_gain(self, plan: Plan, trained: list[Trained], progress: Progress) -> None:
        """Say what the networks find. Raises NothingGainedError where it is no more, and auto was wanted."""
        found = float(np.mean([each.found for each in trained]))
        before = float(np.mean([each.by_distance for each in trained]))
        said = (
            "of made-up defects of kinds that the networks were not shown they find, as image AUROC, "
            f"{found:.3f}, distances alone {before:.3f}"
        )
        if found > before:
            progress.note(said)
        elif plan.options.adapt == "auto":
            raise NothingGainedError(said)
        else:
            progress.note(
                f"warning: nothing is gained here: {said}; --model {self.plain} without --adapt is as good"
            )

    def check_told(self, plan: Plan, whole: Known, farthest: Doubles) -> None:
        """Raises FitError where float32 can't tell held-out good frames apart; farthest is of each."""

    @abstractmethod
    def parameters(self, plan: Plan, whole: Known) -> dict[str, Any]:
        """Of the kind without networks, for recipe.toml."""


def _far(farthest: Doubles) -> float:
    return float(np.quantile(farthest, FAR))


def _percents(training: Training, steps: int, until: float) -> Iterator[int]:
    """Train; a number for every hundredth of the steps, or of the time until then, whichever comes first."""
    began, told = time.monotonic(), 0
    for step in training.run():
        spent = (time.monotonic() - began) / (until - began)
        done = int(100 * min(1.0, max(step / steps, spent)))
        yield from range(told + 1, done + 1)
        told = max(told, done)


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
