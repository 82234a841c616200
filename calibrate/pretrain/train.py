"""Pre-training of a bundled backbone, on two CPU cores or one CUDA device; survives a kill.

It learns to tell classes apart: what photographs show, and which design a made-up part is of. Textures are
also told apart photograph by photograph (Dosovitskiy et al. 2014, "Discriminative Unsupervised Feature
Learning with Exemplar Convolutional Neural Networks"), for a detector lives from such differences. Light
changes little from view to view: a network taught to overlook light overlooks the defects that show as light.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from calibrate.pretrain import checkpoint, nuisance
from calibrate.pretrain.corpus import SCENES, Corpus, crop
from calibrate.pretrain.course import Course
from calibrate.pretrain.network import Trainee

CHECKPOINT = "checkpoint.pt"
# Sources of textures: each of their photographs is a class of its own besides.
TEXTURES = ("ambientcg_thumbs", "tex_nobiax_cc0", "tex_philipk")
NO_SINGLE = -100

Drawn: TypeAlias = tuple[Tensor, Tensor, Tensor]  # images, their classes, their singles or NO_SINGLE


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, besides the corpus."""

    network: str = "standard"  # of command.WEIGHTS
    steps: int = 5000
    images: int = 160  # a step
    scenes: float = 0.2  # share of them that are made-up parts, where the corpus has some
    size: int = 96
    light: float = 0.25  # strength of nuisance.vary
    rate: float = 2e-3
    decay: float = 0.02
    average: float = 0.999  # of the weights, per step
    seed: int = 0


class Draws(torch.utils.data.IterableDataset[Drawn]):
    """The images of the steps from `first` on; each depends on the seed and its step alone."""

    def __init__(self, corpus: Corpus, settings: Settings, first: int, device: torch.device) -> None:
        self._corpus, self._settings, self._first, self._device = corpus, settings, first, device
        self._chances = chances(corpus, settings.scenes)
        self._singles = singles(corpus)

    def __iter__(self) -> Iterator[Drawn]:
        for step in range(self._first, self._settings.steps):
            yield self._draw(np.random.default_rng((self._settings.seed, step)))

    def _draw(self, rng: np.random.Generator) -> Drawn:
        corpus, count, size = self._corpus, self._settings.images, self._settings.size
        chosen = rng.choice(len(corpus.images), count, p=self._chances)
        images = crops(corpus, chosen, rng, size, self._device)
        generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        images = nuisance.vary(images, generator, self._settings.light)
        classes, alone = (torch.from_numpy(kind[chosen]) for kind in (corpus.classes, self._singles))
        return images, classes.to(self._device), alone.to(self._device)


def crops(
    corpus: Corpus, chosen: npt.NDArray[np.int64], rng: np.random.Generator, size: int, device: torch.device
) -> Tensor:
    """Windows of these images, float32 (chosen, 3, size, size): turned a little, half mirrored, half grey."""
    cropped = [crop(corpus.images[i], rng, size, (0.4, 1.0), 15.0) for i in chosen]
    flipped = [c[:, ::-1] if rng.random() < 0.5 else c for c in cropped]
    stacked = np.ascontiguousarray(np.stack(flipped).transpose(0, 3, 1, 2))
    images = torch.from_numpy(stacked).to(device).float()
    grey = torch.tensor(rng.random(len(chosen)) < 0.5, device=device)[:, None, None, None]
    return torch.where(grey, images.mean(1, keepdim=True).expand_as(images), images)


def singles(corpus: Corpus) -> np.ndarray:
    """A class of its own for each texture's photograph, NO_SINGLE for every other image; int64 (images,)."""
    textures = corpus.of(TEXTURES)
    return np.where(textures, np.cumsum(textures) - 1, NO_SINGLE)


def chances(corpus: Corpus, scenes: float) -> np.ndarray:
    """Of each image to be drawn: a class comes about as often as the root of its size."""
    weights = 1 / np.sqrt(np.bincount(corpus.classes)[corpus.classes])
    made_up = corpus.of((SCENES,))
    for part, share in ((made_up, scenes), (~made_up, 1 - scenes)):
        if made_up.any() and not made_up.all():
            weights[part] *= share / weights[part].sum()
    found: np.ndarray = weights / weights.sum()
    return found


class Training(Course[Drawn]):
    """The classes, to the end or as far as a killed run came."""

    def __init__(self, corpus: Corpus, settings: Settings, folder: Path, device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self._corpus, self._settings = corpus, settings
        alone = max(int(corpus.of(TEXTURES).sum()), 1)  # the loss of a head without classes is not finite
        trainee = Trainee(settings.network, len(corpus.names), alone)
        super().__init__(trainee, settings, folder / CHECKPOINT, identity_of(corpus, settings), device)

    @property
    def averaged(self) -> Trainee:
        """The trainee with averaged weights: what is evaluated and exported."""
        module: Trainee = self._average.module
        return module

    def _draws(self, first: int) -> Draws:
        return Draws(self._corpus, self._settings, first, self._device)

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        return losses["stage3"] + 0.5 * (losses["stage1"] + losses["stage2"] + losses["single"])

    def _losses(self, drawn: Drawn) -> dict[str, Tensor]:
        images, classes, alone = drawn
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            logits, single = self._trainee(images)
        first, second, third = (_told(each, classes) for each in logits)
        return {"stage1": first, "stage2": second, "stage3": third, "single": _told(single, alone)}


def _told(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy over the images that have a class; 0 where none has."""
    has = (classes != NO_SINGLE).sum().clamp(min=1)
    loss = functional.cross_entropy(
        logits.float(), classes, ignore_index=NO_SINGLE, label_smoothing=0.1, reduction="sum"
    )
    return loss / has


def identity_of(corpus: Corpus, settings: Settings) -> checkpoint.Identity:
    """What another run must share to continue this one."""
    return asdict(settings) | images_of(corpus)


def images_of(corpus: Corpus) -> dict[str, int]:
    """How many images each class has, by a name for people."""
    counts = np.bincount(corpus.classes).tolist()
    return {f"images of {name}": n for name, n in zip(corpus.names, counts, strict=True)}
