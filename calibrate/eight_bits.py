"""From a plan in floating point to one in 8 bits, if that loses little enough; measured before it is fitted.

Two small models are fitted on the same good frames, one with each graph, and asked about the same other
frames: good ones, and good ones struck by synthetic defects. No figure is from a frame that taught, or that
gave the ranges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from scipy import stats

from calibrate.fit import modelled
from calibrate.folds import Folds, Indices, evenly
from calibrate.golden import score_in_fresh_process, write_frame
from calibrate.metrics import auroc
from calibrate.progress import Progress, Silent
from calibrate.quantise import ALREADY, quantised, share_in_8_bits
from calibrate.spool import Scratch
from calibrate.synthetic import KINDS, strike
from inspectord.errors import FitError
from inspectord.frame import Pixels

if TYPE_CHECKING:
    from calibrate.plan import Plan

RANGED = 64  # good frames at most that say what activations reach
TAUGHT, ASKED, STRUCK = 32, 24, 72  # at most of each; of half as many, chance alone moved AUROC by 0.03
STRENGTHS = (0.1, 0.5)  # of the defects: some are hard to see, or nothing could be lost
FOLDS = 4  # that the taught frames are parted into, to say what is usual

PARAMETERS = {  # in a recipe, by field of Loss
    "auroc_f32": "int8_auroc_f32",
    "auroc": "int8_auroc",
    "rank_agreement": "int8_rank_agreement",
    "rank_agreement_good": "int8_rank_agreement_good",
    "good": "int8_good_frames",
    "struck": "int8_struck_frames",
}


@dataclass(frozen=True)
class Loss:
    """What 8 bits cost: shares of 1, and ranks of scores in 8 bits and in f32 against each other."""

    auroc_f32: float  # of struck against good frames
    auroc: float
    rank_agreement: float  # Spearman's, over good and struck frames
    rank_agreement_good: float  # over the good ones alone, which differ least
    good: int
    struck: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Loss | None:
        """As a recipe's parameters have it; None where they do not."""
        if "int8_auroc" not in parameters:
            return None
        return cls(**{field: parameters[name] for field, name in PARAMETERS.items()})

    @property
    def size(self) -> float:
        """The AUROC that is lost, or a fifth of what the ranks lack of agreeing, whichever is more."""
        return max(self.auroc_f32 - self.auroc, (1 - self.rank_agreement) / 5)

    def words(self) -> str:
        return (
            f"on {self.good} good frames and {self.struck} with a synthetic defect AUROC is "
            f"{self.auroc:.3f}, {self.auroc_f32:.3f} in f32, and the ranks of their scores agree by "
            f"{self.rank_agreement:.3f}"
        )

    def parameters(self) -> dict[str, float | int]:
        """For recipe.toml."""
        return {name: round(getattr(self, field), 4) for field, name in PARAMETERS.items()}


def in_eight_bits(plan: Plan, progress: Progress) -> Plan:
    """The plan with its graph in 8 bits, and what that loses.

    Raises FitError where it loses more than the options allow, and where it can't be done.
    """
    eight = dataclasses.replace(plan, graph=_graph(plan, progress))
    if eight.graph is plan.graph and plan.hint == "f32":
        return plan  # nothing to compare
    loss = measured(plan, eight, progress)
    progress.note(f"8 bits: {loss.words()}")
    allowed = plan.options.max_int8_loss
    if not loss.size <= allowed:
        raise FitError(
            f"8 bits lose too much: {loss.words()}; --max-int8-loss {allowed:g} allows so much less AUROC "
            f"and ranks that agree by {max(0, 1 - 5 * allowed):g}; use --precision bf16 or f32, or allow "
            f"{np.ceil(loss.size * 1000) / 1000:g}"
        )
    return dataclasses.replace(eight, loss=loss)


def seconds(plan: Plan, frame_s: float, learning_s: float) -> float:
    """What in_eight_bits() takes, where a frame takes frame_s and learning from all samples learning_s."""
    share = min(1.0, TAUGHT / plan.samples)
    return frame_s * (2 * RANGED + 3 * (TAUGHT + ASKED + STRUCK)) + 2 * share * learning_s + 10


def _graph(plan: Plan, progress: Progress) -> ov.Model:
    if share_in_8_bits(plan.graph) >= ALREADY:
        rest = (
            f"only what follows it, now in {plan.hint}: --precision {plan.hint} gives the same scores, sooner"
        )
        progress.note(
            f"the backbone {plan.backbone.name} computes in 8 bits at any --precision, so int8 changes "
            + ("nothing: leave --precision out" if plan.hint == "f32" else rest)
        )
        return plan.graph
    found = None
    for _ in progress.track(range(1), "finding the ranges of 8 bits"):
        ranged = evenly(np.setdiff1d(np.arange(len(plan.good)), _parted(plan)[1]), RANGED)
        found = quantised(plan.graph, [plan.good.read(int(index)) for index in ranged])
    assert found is not None
    return found


def agreement(scores: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Spearman's rank correlation; 1 where neither tells any frames apart."""
    if np.ptp(scores) == 0 or np.ptp(others) == 0:
        return float(np.ptp(scores) == np.ptp(others))
    return float(stats.spearmanr(scores, others).statistic)


def _struck(plan: Plan, pixels: Pixels, number: int, strength: float) -> Pixels:
    return strike(pixels, KINDS[number % len(KINDS)], strength, number, plan.region.looked_at())[0]


def measured(plan: Plan, eight: Plan, progress: Progress) -> Loss:
    """Fit both on some of the good frames that no training saw, and ask them about others."""
    taught, asked = _parted(plan)
    exact = dataclasses.replace(plan, rest="f32")
    with Scratch() as folder:
        frames = _written(plan, asked, folder)
        found = []
        for each in progress.track((exact, eight), "comparing 8 bits with floating point"):
            found.append(_scores(_smaller(each, taught), frames, folder))
    is_struck = np.arange(len(frames)) >= len(asked)
    (f32, int8), good = found, ~is_struck
    return Loss(
        auroc_f32=auroc(f32[good], f32[is_struck]),
        auroc=auroc(int8[good], int8[is_struck]),
        rank_agreement=agreement(f32, int8),
        rank_agreement_good=agreement(f32[good], int8[good]),
        good=len(asked),
        struck=int(is_struck.sum()),
    )


def _parted(plan: Plan) -> tuple[Indices, Indices]:
    """Good frames that teach both small models, and those that they are asked about."""
    known = evenly(plan.measured, TAUGHT + ASKED)
    asked = known[1::3][:ASKED]
    return np.setdiff1d(known, asked), asked


def _written(plan: Plan, asked: Indices, folder: Path) -> list[Path]:
    """The good frames asked about as files, then those that are struck."""
    good = [plan.good.read(int(index)) for index in asked]
    strengths = np.linspace(*STRENGTHS, STRUCK)
    struck = [
        _struck(plan, good[number % len(good)], number, float(strength))
        for number, strength in enumerate(np.random.default_rng(0).permutation(strengths))
    ]
    paths = []
    for number, pixels in enumerate([*good, *struck]):
        paths.append(write_frame(folder / f"asked_{number}.png", pixels))
    return paths


def _smaller(plan: Plan, taught: Indices) -> Plan:
    """The same plan for these good frames alone; of a network that was trained before, nothing is taught."""
    good = dataclasses.replace(plan.good, frames=tuple(plan.good.frames[int(index)] for index in taught))
    numbers, everyone = np.arange(len(taught)), np.ones(len(taught), np.bool_)
    folds = Folds(numbers % FOLDS, everyone, trained_once=plan.folds.trained_once)
    options = dataclasses.replace(plan.options, augment=0, extendable=False, jobs=1, on=None)
    return dataclasses.replace(plan, good=good, folds=folds, options=options)


def _scores(plan: Plan, frames: list[Path], folder: Path) -> npt.NDArray[np.float64]:
    """What a recipe of this plan would say of the frames."""
    model, _ = modelled(plan, folder, Silent())
    ov.serialize(model, folder / "model.xml", folder / "model.bin")
    del model
    options = plan.options
    return score_in_fresh_process(
        folder / "model.xml", options.device, plan.hint, options.threads, frames, folder
    ).scores
