"""A last part of pre-training, where it is asked for: places told apart under other light, without classes.

Two views of each crop, moved against one another and under different light: of some cells of every crop, each
stage must tell which cell of the other view is the same place (Pinheiro et al. 2020, "Unsupervised Learning
of Dense Visual Representations"; the loss is that of van den Oord et al. 2018, InfoNCE). So features that
change with light or position alone are worth nothing. No defect is ever seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibrate.pretrain import nuisance
from calibrate.pretrain.checkpoint import Identity
from calibrate.pretrain.corpus import Corpus
from calibrate.pretrain.course import Course
from calibrate.pretrain.network import Lite, Standard
from calibrate.pretrain.train import Settings as Classes
from calibrate.pretrain.train import chances, crops, images_of

CHECKPOINT = "contrast.pt"
AGAIN = "remove it to tell places apart anew, the classes are kept"
STRIDES = (4, 8)  # of the two stages
MOVED = 2  # cells of the coarser stage, at most; both views fit into a crop that is so much larger
JITTER_PX = 2  # besides, at most
WIDTH = 64  # of a projected cell

Drawn: TypeAlias = tuple[Tensor, Tensor, int]  # both views, how far the second is moved in coarse cells, step


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, besides the corpus and the weights it begins with."""

    steps: int = 500
    crops: int = 48  # a step
    cells: int = 24  # of each crop and stage
    scenes: float = 0.3  # share of them that are made-up parts
    size: int = 96
    light: float = 0.5  # strength of nuisance.vary
    temperature: float = 0.1
    rate: float = 1e-3
    decay: float = 0.02
    average: float = 0.995
    seed: int = 0


class Views(torch.utils.data.IterableDataset[Drawn]):
    """The views of the steps from `first` on; each depends on the seed and its step alone."""

    def __init__(self, corpus: Corpus, settings: Settings, first: int, device: torch.device) -> None:
        self._corpus, self._settings, self._first, self._device = corpus, settings, first, device
        self._chances = chances(corpus, settings.scenes)

    def __iter__(self) -> Iterator[Drawn]:
        for step in range(self._first, self._settings.steps):
            yield self._draw(np.random.default_rng((self._settings.seed, step)), step)

    def _draw(self, rng: np.random.Generator, step: int) -> Drawn:
        settings, coarse = self._settings, STRIDES[-1]
        chosen = rng.choice(len(self._corpus.images), settings.crops, p=self._chances)
        side = settings.size + coarse * MOVED + 2 * JITTER_PX
        images = crops(self._corpus, chosen, rng, side, self._device)
        moved = rng.integers(-MOVED, MOVED + 1, 2)
        first = JITTER_PX + np.maximum(0, -coarse * moved)
        second = first + coarse * moved + rng.integers(-JITTER_PX, JITTER_PX + 1, 2)
        generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        views = [
            nuisance.vary(
                images[..., y : y + settings.size, x : x + settings.size], generator, settings.light
            )
            for y, x in (first.tolist(), second.tolist())
        ]
        return torch.cat(views), torch.from_numpy(moved), step


class Contrast(Course[Drawn]):
    """One run, from a backbone that it leaves as it is; continues where its folder's checkpoint ends."""

    diverged = "give other weights to --start, or leave --contrast out"

    def __init__(
        self,
        backbone: Lite | Standard,
        corpus: Corpus,
        settings: Settings,
        identity: Identity,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(settings.seed)
        self._corpus, self._settings = corpus, settings
        projections = nn.ModuleList(_projection(width) for width in backbone.widths[: len(STRIDES)])
        trainee = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "projections": projections})
        whole = {**asdict(settings), **images_of(corpus), **identity}
        super().__init__(trainee, settings, folder / CHECKPOINT, whole, device, AGAIN)

    @property
    def averaged(self) -> Lite | Standard:
        """The backbone with averaged weights: what is exported."""
        module: Lite | Standard = self._average.module["backbone"]
        return module

    def _draws(self, first: int) -> Views:
        return Views(self._corpus, self._settings, first, self._device)

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        return sum(losses.values(), torch.zeros((), device=self._device))

    def _losses(self, drawn: Drawn) -> dict[str, Tensor]:
        views, moved, step = drawn
        views = views.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            stages = self._trainee["backbone"](views)
            projected = [p(stage) for p, stage in zip(self._trainee["projections"], stages, strict=True)]
        rng = np.random.default_rng((self._settings.seed, step, 1))
        losses = {}
        for number, (cells, stride) in enumerate(zip(projected, STRIDES, strict=True), start=1):
            first, second = cells.float().chunk(2)
            by = (moved * (STRIDES[-1] // stride)).tolist()
            here, there = same_places(first, second, by, self._settings.cells, rng)
            losses[f"stage{number}"] = told_apart(here, there, self._settings.temperature)
        return losses


def same_places(
    first: Tensor, second: Tensor, moved: list[int], cells: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """So many cells of each crop that both views have, border cells left out, (crops x cells, width) of each.

    A cell may be drawn twice, and is then told from its twin in vain: it costs a little and harms nobody.
    """
    side, shape = first.shape[-1], (len(first), cells)
    low, high = np.maximum(1, np.add(moved, 1)), np.minimum(side - 1, np.add(moved, side - 1))
    y, x = (torch.from_numpy(rng.integers(low[way], high[way], shape)) for way in range(2))
    crop = torch.arange(len(first))[:, None]
    return (
        first[crop, :, y, x].flatten(0, 1),
        second[crop, :, y - moved[0], x - moved[1]].flatten(0, 1),
    )


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 2 * WIDTH, 1), nn.ReLU(), nn.Conv2d(2 * WIDTH, WIDTH, 1))


def told_apart(here: Tensor, there: Tensor, temperature: float) -> Tensor:
    """The loss of telling which row of the other is the same place, both ways; each (places, WIDTH)."""
    logits = functional.normalize(here) @ functional.normalize(there).T / temperature
    same = torch.arange(len(here), device=here.device)
    return (functional.cross_entropy(logits, same) + functional.cross_entropy(logits.T, same)) / 2


def identity_after(classes: Classes) -> Identity:
    """What decides the weights that it begins with, where it follows the classes, besides the corpus."""
    return {f"classes' {name}": value for name, value in asdict(classes).items()}
