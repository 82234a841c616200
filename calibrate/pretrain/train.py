"""Pre-training of the bundled backbone, on two CPU cores or one CUDA device; survives a kill.

Three losses share the network: photographs are classified, a patch's distance to the good patches of its part
must tell defects, and a small segmenter must find them from what separates a patch from its nearest good one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibrate.pretrain import checkpoint, nuisance
from calibrate.pretrain.corpus import Corpus, crop
from calibrate.pretrain.episodes import Episode, Episodes
from calibrate.pretrain.losses import Distances, balanced, cells, nearest, ranked
from calibrate.pretrain.network import WIDTHS, Lite, Segmenter
from inspectord.errors import FitError

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 200  # steps
WARM_UP = 200

Drawn: TypeAlias = tuple[Episode, Tensor, Tensor]  # an episode; photographs and their classes


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, besides the corpus."""

    steps: int = 5000
    parts: int = 4  # an episode's
    photographs: int = 144  # classified a step
    size: int = 96
    rate: float = 2e-3
    decay: float = 0.02
    average: float = 0.999  # of the weights, per step
    seed: int = 0


class Draws(torch.utils.data.IterableDataset[Drawn]):
    """Episodes and photographs of the steps from `first` on; each depends on the seed and its step alone."""

    def __init__(self, corpus: Corpus, settings: Settings, first: int, device: torch.device) -> None:
        self._corpus, self._settings, self._first, self._device = corpus, settings, first, device
        self._episodes = Episodes(corpus, settings.size, settings.seed, device)

    def __iter__(self) -> Iterator[Drawn]:
        for step in range(self._first, self._settings.steps):
            yield self._episodes.draw(step, self._settings.parts), *self._photographs(step)

    def _photographs(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and their classes, every class about as often as the root of its size."""
        rng = np.random.default_rng((self._settings.seed, step, 1))
        corpus, count = self._corpus, self._settings.photographs
        frequency = np.bincount(corpus.classes)
        weights = 1 / np.sqrt(frequency[corpus.classes])
        chosen = rng.choice(len(corpus.images), count, p=weights / weights.sum())
        crops = [crop(corpus.images[i], rng, self._settings.size, (0.5, 1.0), 15.0) for i in chosen]
        flipped = [c[:, ::-1] if rng.random() < 0.5 else c for c in crops]
        stacked = np.ascontiguousarray(np.stack(flipped).transpose(0, 3, 1, 2))
        images = torch.from_numpy(stacked).to(self._device).float()
        grey = torch.tensor(rng.random(count) < 0.5, device=self._device)[:, None, None, None]
        images = torch.where(grey, images.mean(1, keepdim=True).expand_as(images), images)
        generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        images = nuisance.vary(images, generator)
        return images, torch.from_numpy(corpus.classes[chosen]).to(self._device)


class Trainee(nn.Module):
    """The backbone with the heads that only training needs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Lite()
        self.segmenter = Segmenter()
        self.distances = Distances()
        self.classifier = nn.Linear(WIDTHS[-1], classes)


class Training:
    """One run: continues where its folder's checkpoint ends."""

    def __init__(self, corpus: Corpus, settings: Settings, folder: Path, device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self._corpus, self._settings, self._checkpoint = corpus, settings, folder / CHECKPOINT
        self._device = torch.device(device)
        layout = {"memory_format": torch.channels_last}
        self._trainee = Trainee(len(corpus.names)).to(self._device, **layout)
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
        self._identity = _identity(corpus, settings)
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
        loader: Iterable[Drawn] = torch.utils.data.DataLoader(
            draws, batch_size=None, num_workers=1, prefetch_factor=4
        )
        return loader

    def _one(self, drawn: Drawn) -> dict[str, float]:
        settings, step = self._settings, self.step
        for group in self._optimiser.param_groups:
            group["lr"] = settings.rate * _schedule(step, settings.steps)
        self._trainee.train()
        losses = self._losses(*drawn)
        total = losses["distance"] + losses["rank"] + 0.5 * losses["segment"] + losses["class"]
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self._trainee.parameters(), 5.0)
        if not torch.isfinite(total + norm):
            raise FitError(
                f"the loss or its gradient is not finite at step {step}; "
                "begin anew with a smaller --rate and another --out"
            )
        self._optimiser.step()
        self._average.update_parameters(self._trainee)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses(self, episode: Episode, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
        trainee, parts = self._trainee, len(episode.support)
        everything = torch.cat([episode.support.flatten(0, 1), episode.queries.flatten(0, 1), images])
        everything = everything.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            stages = trainee.backbone.stages(everything)
            logits = trainee.classifier(stages[2][-len(images) :].mean((2, 3)))
            embedding = trainee.backbone.embed([stage[: -len(images)] for stage in stages])
        embedding = embedding.float()
        supports = episode.support.shape[:2].numel()
        support, queries = embedding[:supports], embedding[supports:]
        rows, columns = embedding.shape[2:]
        struck, clean = cells(episode.mask.flatten(0, 1), rows, columns)
        distance, residual = nearest(
            queries.reshape(parts, -1, *queries.shape[1:]), support.reshape(parts, -1, *support.shape[1:])
        )
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            seen = trainee.segmenter(queries, residual.flatten(0, 1)).float()
        far = trainee.distances(distance)
        shape = far.shape
        return {
            "distance": balanced(far.flatten(0, 1), struck, clean),
            "rank": ranked(far, struck.reshape(shape), clean.reshape(shape)),
            "segment": balanced(seen, struck, clean)
            + ranked(seen.reshape(shape), struck.reshape(shape), clean.reshape(shape)),
            "class": functional.cross_entropy(logits.float(), classes, label_smoothing=0.1),
        }


def _identity(corpus: Corpus, settings: Settings) -> checkpoint.Identity:
    """What another run must share to continue this one."""
    counts = np.bincount(corpus.classes).tolist()
    photographs = {f"photographs of {name}": n for name, n in zip(corpus.names, counts, strict=True)}
    return asdict(settings) | photographs


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(steps - WARM_UP, 1)
    return 0.5 * (1 + float(np.cos(np.pi * done)))
