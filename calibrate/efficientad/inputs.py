"""What a training sees: tiles as the recipe's graph cuts them, in other colours too, and other things."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from calibrate.folds import Indices
from calibrate.graph import tile_model
from calibrate.kinds import ALL_THE_SAME
from calibrate.pretrain import scenes
from calibrate.spool import Spool
from inspectord.errors import FitError
from inspectord.frame import Pixels
from inspectord.inspect import compile_model

if TYPE_CHECKING:
    from calibrate.plan import Plan

JITTER = 0.2  # brightness, contrast or saturation change by at most this share; section 3.3
POOL = 128  # different scenes to draw from
GREY = 0.3  # share of them without colour


class Tiles:
    """The tiles of all samples, float32, on disk, since many fits' tiles would not stay in memory."""

    def __init__(self, plan: Plan, samples: Iterable[Pixels], folder: Path) -> None:
        """Cut them, as the plan's graph does. digest is a SHA-256 over all of them.

        Raises FitError where no sample differs from another.
        """
        model = tile_model(plan.frame, plan.geometry, plan.region.ignored)
        request = compile_model(model, "CPU", "f32", plan.options.threads).create_infer_request()
        count, *self.shape = model.outputs[0].get_shape()
        self._a_frame, hashed = count, hashlib.sha256()
        self._spool = Spool(folder, plan.samples * count, 1, int(np.prod(self.shape)), 1)
        digests = set()
        for sample, pixels in enumerate(samples):
            request.infer([pixels[None]])
            tiles = request.get_output_tensor(0).data
            digests.add(hashlib.sha256(tiles.data).digest())
            hashed.update(tiles.data)
            for number, tile in enumerate(tiles):
                self._spool.write_frame(sample * count + number, tile.reshape(1, -1))
        if len(digests) == 1:
            raise FitError(ALL_THE_SAME)
        self.digest = hashed.hexdigest()

    def of(self, samples: Indices) -> Indices:
        """Numbers of the tiles of these samples."""
        numbers: Indices = np.add.outer(samples * self._a_frame, np.arange(self._a_frame)).ravel()
        return numbers

    def read(self, numbers: Indices) -> Tensor:
        """Tiles (n, 1 or 3, height, width), 0..255."""
        tiles = [self._spool.read_frame(int(number)).reshape(self.shape) for number in numbers]
        return torch.from_numpy(np.stack(tiles))

    def close(self) -> None:
        self._spool.close()


def recoloured(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image brighter or darker, or of more or less contrast, or of more or less colour."""
    grey = images.mean(1, keepdim=True).expand_as(images)
    fixed = torch.zeros_like(images), grey.mean((2, 3), keepdim=True).expand_as(images), grey
    out = images.clone()
    for number, image in enumerate(images):
        factor, kind = float(rng.uniform(1 - JITTER, 1 + JITTER)), int(rng.integers(3))
        still = fixed[kind][number]
        out[number] = still + factor * (image - still)
    return out.clamp(0, 255)


class Others:
    """Images of anything but the part: made-up scenes in the place of the paper's ImageNet, whose terms a
    factory's lawyer would ask about. Drawn when first asked for; the same pool for the same seed.
    """

    def __init__(self, height: int, width: int, seed: int) -> None:
        self._size, self._seed = (height, width), seed
        self._drawn: dict[int, Tensor] = {}

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """(count, 3, height, width), 0..255."""
        return torch.stack([self._scene(int(number)) for number in rng.integers(POOL, size=count)]).float()

    def _scene(self, number: int) -> Tensor:
        if number not in self._drawn:
            family = scenes.FAMILIES[number % len(scenes.FAMILIES)]
            seeds = torch.tensor([(self._seed * POOL + number) % 2**62])
            scene = scenes.render(family, seeds, 1, max(self._size))[0, 0]
            if np.random.default_rng((self._seed, number)).random() < GREY:
                scene = scene.mean(0, keepdim=True).expand_as(scene)
            height, width = self._size
            self._drawn[number] = scene[:, :height, :width].round().to(torch.uint8)
        return self._drawn[number]
