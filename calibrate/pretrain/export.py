"""From a trained network to the weights file that the package ships, without torch's names or precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from calibrate.backbones.lite import fold_state, with_ranges
from calibrate.pretrain import scenes
from calibrate.pretrain.corpus import Corpus, crop
from calibrate.pretrain.train import Trainee

RANGE_IMAGES = 96  # of each kind; what their activations reach is what 8 bits must hold
SIZE = 256

Floats = npt.NDArray[np.float32]


def export(trainee: Trainee, corpus: Corpus, path: Path) -> None:
    """Write the backbone, batch norms folded, kernels in half precision; whole or not at all."""
    state = {name: value.cpu().float().numpy() for name, value in trainee.backbone.state_dict().items()}
    images = np.stack(list(_range_images(corpus)))
    tensors = with_ranges(fold_state(state), images)
    spread = _spread(trainee, images)
    for name in ("metric.kernel", "metric.bias"):
        tensors[name] = tensors[name] / spread
    halves = {
        name: value.astype(np.float16 if name.endswith(".kernel") else np.float32)
        for name, value in tensors.items()
    }
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(halves))
    os.replace(part, path)


def _spread(trainee: Trainee, images: Floats) -> float:
    """Standard deviation of the embedding over images and places, root mean square over its channels.

    Divided by it, the embedding has a variance of 1, of which PaDiM's epsilon of 0.01 is a hundredth.
    """
    backbone = trainee.backbone.cpu().float().eval()
    with torch.no_grad():
        embeddings = torch.cat([backbone(torch.from_numpy(image[None])) for image in images])
    return float(embeddings.var((0, 2, 3)).mean().sqrt())


def _range_images(corpus: Corpus) -> Iterator[Floats]:
    """Photographs and scenes, float32 (3, SIZE, SIZE), each in colour and in grey."""
    rng = np.random.default_rng(0)
    for number in range(RANGE_IMAGES):
        image = corpus.images[rng.integers(len(corpus.images))]
        yield from _both(crop(image, rng, SIZE, (0.7, 1.0)).transpose(2, 0, 1).astype(np.float32))
        family = scenes.FAMILIES[number % len(scenes.FAMILIES)]
        yield from _both(scenes.render(family, torch.tensor([number]), 1, SIZE)[0, 0].numpy())


def _both(image: Floats) -> Iterator[Floats]:
    yield image
    yield np.broadcast_to(image.mean(0, keepdims=True), image.shape)
