"""Episodes: a few good frames of one part to compare with, and others of it, some struck by a defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calibrate.pretrain import defects, nuisance, scenes
from calibrate.pretrain.corpus import Corpus, crop

SUPPORT, QUERIES = 4, 4
INSTANCES = SUPPORT + QUERIES
# Sources whose classes are one kind of part each, so that images of a class are frames of one product.
PRODUCTS = ("wood_screws", "dsb2018_nuclei", "bccd_blood_cells", "cellprofiler_examples", "playing_cards")
GREY = 0.5  # share of parts seen by a monochrome camera
STRUCK = 0.8  # share of queries with a defect


class Episode(NamedTuple):
    """Of g parts: support (g, SUPPORT, 3, size, size), queries (g, QUERIES, ...), mask, bool, one channel."""

    support: Tensor
    queries: Tensor
    mask: Tensor


class Episodes:
    """Draws episodes, three fifths of photographs, the rest of procedural scenes; reproducible by seed."""

    def __init__(self, corpus: Corpus, size: int, seed: int, device: torch.device) -> None:
        self._corpus, self._size, self._device = corpus, size, device
        self._seed = seed
        self._products = corpus.members(PRODUCTS)

    def draw(self, step: int, parts: int) -> Episode:
        """The episode of a step: `parts` parts."""
        rng = np.random.default_rng((self._seed, step))
        generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        frames = self._frames(rng, parts)
        frames = _greyed(frames, rng)
        flat = frames.reshape(-1, *frames.shape[2:])
        flat = nuisance.jitter(flat, generator)
        support, good = flat.reshape(frames.shape).split([SUPPORT, QUERIES], 1)
        queries = good.reshape(-1, *good.shape[2:])
        others = queries[torch.randperm(len(queries), generator=generator, device=self._device)]
        struck, mask = defects.strike(queries, others, generator)
        keep = torch.rand(len(queries), generator=generator, device=self._device) < STRUCK
        queries = torch.where(keep[:, None, None, None], struck, queries)
        mask = mask & keep[:, None, None, None]
        everything = torch.cat([support.reshape(-1, *support.shape[2:]), queries])
        everything = nuisance.vary(everything, generator, float(rng.uniform(0, 1.2)))
        support, queries = everything.split([support.shape[0] * SUPPORT, len(queries)])
        shape = everything.shape[1:]
        return Episode(
            support.reshape(parts, SUPPORT, *shape),
            queries.reshape(parts, QUERIES, *shape),
            mask.reshape(parts, QUERIES, *mask.shape[1:]),
        )

    def _frames(self, rng: np.random.Generator, parts: int) -> Tensor:
        rendered = int(rng.binomial(parts, 0.4))
        frames = [self._photographs(rng) for _ in range(parts - rendered)]
        frames += [self._scene(rng) for _ in range(rendered)]
        return torch.stack(frames)

    def _scene(self, rng: np.random.Generator) -> Tensor:
        family = scenes.FAMILIES[rng.integers(len(scenes.FAMILIES))]
        seeds = torch.tensor([int(rng.integers(2**62))])
        return scenes.render(family, seeds, INSTANCES, self._size, device=self._device)[0]

    def _photographs(self, rng: np.random.Generator) -> Tensor:
        kinds: tuple[Callable[[np.random.Generator], list[np.ndarray]], ...]
        kinds = (self._texture, self._texture, self._aligned, self._product)
        images = kinds[rng.integers(len(kinds))](rng)
        stacked = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
        return torch.from_numpy(stacked).to(self._device).float()

    def _texture(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Several places of one photograph, at one scale."""
        image = self._corpus.images[rng.integers(len(self._corpus.images))]
        share = rng.uniform(0.35, 0.75)
        return [crop(image, rng, self._size, (share, share)) for _ in range(INSTANCES)]

    def _aligned(self, rng: np.random.Generator) -> list[np.ndarray]:
        """One place of one photograph, again and again."""
        image = self._corpus.images[rng.integers(len(self._corpus.images))]
        return [crop(image, rng, self._size, (0.6, 1.0), 180.0)] * INSTANCES

    def _product(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Images of one class of products."""
        if not self._products:
            return self._aligned(rng)
        members = self._products[rng.integers(len(self._products))]
        chosen = rng.choice(members, INSTANCES)
        images = [self._corpus.images[i] for i in chosen]
        share = rng.uniform(0.6, 1.0)
        return [crop(image, rng, self._size, (share, share)) for image in images]


def _greyed(frames: Tensor, rng: np.random.Generator) -> Tensor:
    grey = torch.tensor(rng.random(len(frames)) < GREY, device=frames.device)
    mean = frames.mean(2, keepdim=True).expand_as(frames)
    return torch.where(grey[:, None, None, None, None], mean, frames)
