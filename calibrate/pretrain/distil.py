"""EfficientAD-S's bundled teacher: a patch description network that learns to describe as the backbone does.

Batzner et al. 2024, section 3.1 and algorithm 3, with the lite backbone in the place of a network trained
on ImageNet, and the backbone's corpus in the place of ImageNet. Survives a kill as train.Training does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from safetensors.numpy import save
from torch import Tensor, nn
from torch.nn import functional

from calibrate.backbones.lite import JOINED, open_lite
from calibrate.efficientad.networks import BORDER, STRIDE, TEACHER, pdn_small
from calibrate.pretrain import checkpoint
from calibrate.pretrain.corpus import Corpus
from calibrate.pretrain.course import CHECKPOINT_EVERY, schedule
from calibrate.pretrain.descent import descend
from calibrate.pretrain.train import CHECKPOINT, Draws, Settings, identity_of
from inspectord.errors import FitError
from inspectord.inspect import compile_model

NORMALISED_BY = 32  # steps' images, whose features give mean and spread
SETTINGS = Settings(network="pdn-s", images=8, size=128, rate=1e-3, decay=1e-5)


class Described:
    """What the backbone says of images of one size, at the places of a patch description network's map.

    Both stages, at the first one's stride, are normalised by channel and mixed into TEACHER channels that all
    count alike: a seeded matrix of orthonormal columns leaves distances between descriptions as they are.
    """

    def __init__(self, size: int, threads: int) -> None:
        images = op.parameter([1, 3, size, size], ov.Type.f32)
        backbone = open_lite(("stage1", "stage2"))
        maps = backbone.features(images.output(0), [None, None])
        model = ov.Model([op.result(found) for found in maps], [images], "backbone")
        self._request = compile_model(model, "CPU", "f32", threads).create_infer_request()
        self.digest, self._side = backbone.digest, size // STRIDE
        rng = np.random.default_rng(0)
        columns, _ = np.linalg.qr(rng.standard_normal((TEACHER, sum(JOINED))))
        self._mixing = torch.from_numpy(columns.astype(np.float32)) * (TEACHER / sum(JOINED)) ** 0.5
        self._mean, self._spread = torch.zeros(sum(JOINED), 1, 1), torch.ones(sum(JOINED), 1, 1)

    def normalise(self, draws: Iterator[Tensor]) -> None:
        found = torch.cat([self._features(images) for images in draws])
        self._mean = found.mean((0, 2, 3))[:, None, None]
        self._spread = found.std((0, 2, 3))[:, None, None].clamp(min=1e-3)

    def __call__(self, images: Tensor) -> Tensor:
        """(n, TEACHER, side - 2 BORDER, side - 2 BORDER) of images (n, 3, size, size), 0..255."""
        whole = (self._features(images) - self._mean) / self._spread
        inner = whole[..., BORDER:-BORDER, BORDER:-BORDER]
        return torch.einsum("dc,nchw->ndhw", self._mixing, inner)

    def _features(self, images: Tensor) -> Tensor:
        rows = []
        for image in images.cpu():
            self._request.infer([image.numpy()[None]])
            fine, coarse = (torch.from_numpy(tensor.data.copy()) for tensor in self._request.output_tensors)
            rows.append(
                torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0, mode="bilinear")], 1)
            )
        return torch.cat(rows)


class Distilling:
    """One run: continues where its folder's checkpoint ends."""

    def __init__(self, corpus: Corpus, settings: Settings, folder: Path, device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self._settings, self._checkpoint = settings, folder / CHECKPOINT
        self._corpus, self._device = corpus, torch.device(device)
        self._described = Described(settings.size, torch.get_num_threads())
        self.network = pdn_small(TEACHER).to(self._device, memory_format=torch.channels_last)
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=settings.rate, weight_decay=settings.decay
        )
        self._parts = {"network": self.network, "optimiser": self._optimiser}
        self._identity = {**identity_of(corpus, settings), "backbone": self._described.digest}
        self.step = checkpoint.restore(self._checkpoint, self._identity, self._parts, self._device)

    def run(self) -> Iterator[dict[str, float]]:
        """Train to the end; give the error of every step: 1 is that of knowing nothing.

        Raises FitError where it stops being finite.
        """
        first = iter(Draws(self._corpus, self._settings, 0, torch.device("cpu")))
        self._described.normalise(next(first)[0] for _ in range(min(NORMALISED_BY, self._settings.steps)))
        draws = Draws(self._corpus, self._settings, self.step, torch.device("cpu"))
        for images, _, _ in torch.utils.data.DataLoader(draws, None, num_workers=1, prefetch_factor=4):
            error = self._learn(images)
            self.step += 1
            if self.step % CHECKPOINT_EVERY == 0 or self.step == self._settings.steps:
                checkpoint.write(self._checkpoint, self.step, self._identity, self._parts)
            yield {"error": error}

    def _learn(self, images: Tensor) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.rate * schedule(self.step, self._settings.steps)
        told = self._described(images).to(self._device)
        laid = images.to(self._device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            found = self.network(laid)
        error = (found.float() - told).square().mean()
        if not descend(self._optimiser, self.network, error, clip=5.0):
            raise FitError(
                f"the loss or its gradient is not finite at step {self.step}; "
                "begin anew with a smaller --rate and another --out"
            )
        return float(error.detach())


def export_teacher(network: nn.Sequential, path: Path) -> None:
    """Write the convolutions by number, in half precision; whole or not at all."""
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    tensors = {
        f"conv{number}.{part}": np.ascontiguousarray(
            getattr(layer, part).detach().cpu().numpy(), np.float16 if part == "weight" else np.float32
        )
        for number, layer in enumerate(convolutions, start=1)
        for part in ("weight", "bias")
    }
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(tensors))
    os.replace(part, path)
