"""Pre-training of a bundled backbone, on two CPU cores or one CUDA device; survives a kill.

It learns to tell classes apart: what photographs show, and which design a made-up part is of. Textures are
also told apart photograph by photograph (Dosovitskiy et al. 2014, "Discriminative Unsupervised Feature
Learning with Exemplar Convolutional Neural Networks"), for a detector lives from such differences. Light
changes little from view to view: a network taught to overlook light overlooks the defects that show as light.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from calibrate.pretrain import checkpoint, nuisance
from calibrate.pretrain.corpus import SCENES, Corpus, crop
from calibrate.pretrain.descent import descend
from calibrate.pretrain.network import Trainee
from inspectord.errors import FitError

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 200  # steps
WARM_UP = 200
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
        self._chances = _chances(corpus, settings.scenes)
        self._singles = singles(corpus)

    def __iter__(self) -> Iterator[Drawn]:
        for step in range(self._first, self._settings.steps):
            yield self._draw(np.random.default_rng((self._settings.seed, step)))

    def _draw(self, rng: np.random.Generator) -> Drawn:
        corpus, count, size = self._corpus, self._settings.images, self._settings.size
        chosen = rng.choice(len(corpus.images), count, p=self._chances)
        crops = [crop(corpus.images[i], rng, size, (0.4, 1.0), 15.0) for i in chosen]
        flipped = [c[:, ::-1] if rng.random() < 0.5 else c for c in crops]
        stacked = np.ascontiguousarray(np.stack(flipped).transpose(0, 3, 1, 2))
        images = torch.from_numpy(stacked).to(self._device).float()
        grey = torch.tensor(rng.random(count) < 0.5, device=self._device)[:, None, None, None]
        images = torch.where(grey, images.mean(1, keepdim=True).expand_as(images), images)
        generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        images = nuisance.vary(images, generator, self._settings.light)
        classes, alone = (torch.from_numpy(kind[chosen]) for kind in (corpus.classes, self._singles))
        return images, classes.to(self._device), alone.to(self._device)


def singles(corpus: Corpus) -> np.ndarray:
    """A class of its own for each texture's photograph, NO_SINGLE for every other image; int64 (images,)."""
    textures = corpus.of(TEXTURES)
    return np.where(textures, np.cumsum(textures) - 1, NO_SINGLE)


def _chances(corpus: Corpus, scenes: float) -> np.ndarray:
    """Of each image to be drawn: a class comes about as often as the root of its size."""
    weights = 1 / np.sqrt(np.bincount(corpus.classes)[corpus.classes])
    made_up = corpus.of((SCENES,))
    for part, share in ((made_up, scenes), (~made_up, 1 - scenes)):
        if made_up.any() and not made_up.all():
            weights[part] *= share / weights[part].sum()
    chances: np.ndarray = weights / weights.sum()
    return chances


class Training:
    """One run: continues where its folder's checkpoint ends."""

    def __init__(self, corpus: Corpus, settings: Settings, folder: Path, device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self._corpus, self._settings, self._checkpoint = corpus, settings, folder / CHECKPOINT
        self._device = torch.device(device)
        layout = {"memory_format": torch.channels_last}
        alone = max(int(corpus.of(TEXTURES).sum()), 1)  # the loss of a head without classes is not finite
        self._trainee = Trainee(settings.network, len(corpus.names), alone).to(self._device, **layout)
        self._average = torch.optim.swa_utils.AveragedModel(
            self._trainee,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.average),
            use_buffers=True,
        )
        self._optimiser = torch.optim.AdamW(
            self._trainee.parameters(), lr=settings.rate, weight_decay=settings.decay
        )
        self._parts = {
            "trainee": self._trainee,
            "average": self._average,
            "optimiser": self._optimiser,
        }
        self._identity = identity_of(corpus, settings)
        self.step = checkpoint.restore(self._checkpoint, self._identity, self._parts, self._device)

    @property
    def averaged(self) -> Trainee:
        """The trainee with averaged weights: what is evaluated and exported."""
        module: Trainee = self._average.module
        return module

    def run(self) -> Iterator[dict[str, float]]:
        """Train to the end; give the losses of every step. Raises FitError where they stop being finite."""
        for drawn in self._draws():
            losses = self._one(drawn)
            self.step += 1
            if self.step % CHECKPOINT_EVERY == 0 or self.step == self._settings.steps:
                checkpoint.write(self._checkpoint, self.step, self._identity, self._parts)
            yield losses

    def _draws(self) -> Iterable[Drawn]:
        """What the remaining steps train on; a CPU draws in a process beside the training one."""
        draws = Draws(self._corpus, self._settings, self.step, self._device)
        if self._device.type != "cpu":
            return draws
        # Two drawn ahead are 35 MB of shared memory; of that a container often has 64 MB.
        loader: Iterable[Drawn] = torch.utils.data.DataLoader(
            draws, batch_size=None, num_workers=1, prefetch_factor=2
        )
        return loader

    def _one(self, drawn: Drawn) -> dict[str, float]:
        settings, step = self._settings, self.step
        for group in self._optimiser.param_groups:
            group["lr"] = settings.rate * schedule(step, settings.steps)
        self._trainee.train()
        losses = self._losses(*drawn)
        total = losses["stage3"] + 0.5 * (losses["stage1"] + losses["stage2"] + losses["single"])
        if not descend(self._optimiser, self._trainee, total, clip=5.0):
            raise FitError(
                f"the loss or its gradient is not finite at step {step}; "
                "begin anew with a smaller --rate and another --out"
            )
        self._average.update_parameters(self._trainee)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses(self, images: Tensor, classes: Tensor, alone: Tensor) -> dict[str, Tensor]:
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
    counts = np.bincount(corpus.classes).tolist()
    images = {f"images of {name}": n for name, n in zip(corpus.names, counts, strict=True)}
    return asdict(settings) | images


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(steps - WARM_UP, 1)
    return 0.5 * (1 + float(np.cos(np.pi * done)))
