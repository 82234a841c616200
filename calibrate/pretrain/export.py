"""From a trained network to the weights file that the package ships, without torch's names or precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save
from torch.nn import functional

from calibrate.backbones.lite import fold_state, with_ranges
from calibrate.pretrain import scenes
from calibrate.pretrain.corpus import Corpus, crop
from calibrate.pretrain.network import Lite, Standard

RANGE_IMAGES = 96  # of each kind; what their activations reach is what 8 bits must hold
SIZE = 256

Floats = npt.NDArray[np.float32]


def export(backbone: Lite | Standard, corpus: Corpus, path: Path) -> None:
    """Write the backbone, its kernels in half precision; whole or not at all.

    Lite's batch norms are folded and its ranges measured; Standard keeps torchvision's names.
    """
    state = {
        name: value.cpu().float().numpy()
        for name, value in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    images = np.stack(list(_range_images(corpus)))
    tensors = with_ranges(fold_state(state), images) if isinstance(backbone, Lite) else state
    tensors["joined.spread"] = spread(backbone, images)
    halves = {  # in C order: safetensors writes memory as it lies, and a training's kernels are channels last
        name: value.astype(np.float16 if value.ndim == 4 else np.float32, order="C")
        for name, value in tensors.items()
    }
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(halves))
    os.replace(part, path)


def spread(backbone: Lite | Standard, images: Floats) -> Floats:
    """Standard deviation of every joined channel over images and places, (channels,).

    Divided by it, features have a variance of 1, of which PaDiM's epsilon of 0.01 is a hundredth. A channel
    that hardly ever moves counts as a tenth of the middle one, so that its noise is not blown up.
    """
    backbone = backbone.cpu().float().eval()
    with torch.no_grad():
        stages = [backbone(torch.from_numpy(image[None])) for image in images]
        joined = [torch.cat([functional.avg_pool2d(fine, 2), middle], 1) for fine, middle in stages]
        found: Floats = torch.cat(joined).transpose(0, 1).flatten(1).std(1).numpy()
    return np.maximum(found, 0.1 * np.median(found))


def _range_images(corpus: Corpus) -> Iterator[Floats]:
    """Images of the corpus and scenes at full size, float32 (3, SIZE, SIZE), each in colour and in grey."""
    rng = np.random.default_rng(0)
    for number in range(RANGE_IMAGES):
        image = corpus.images[rng.integers(len(corpus.images))]
        yield from _both(crop(image, rng, SIZE, (0.7, 1.0)).transpose(2, 0, 1).astype(np.float32))
        family = scenes.FAMILIES[number % len(scenes.FAMILIES)]
        yield from _both(scenes.render(family, torch.tensor([number]), 1, SIZE)[0, 0].numpy())


def _both(image: Floats) -> Iterator[Floats]:
    yield image
    yield np.broadcast_to(image.mean(0, keepdims=True), image.shape)
