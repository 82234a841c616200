"""What pre-training sees: photographs of a folder <source>/<class>/<image>, and frames of made-up parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from calibrate.pretrain import scenes
from inspectord.errors import FitError

Bytes = npt.NDArray[np.uint8]
SUFFIXES = (".jpg", ".jpeg", ".png")
SCENES = "scenes"  # the source of made-up parts
INSTANCES, SIDE = 4, 144  # frames of each, and their pixels


@dataclass(frozen=True)
class Corpus:
    """Images, uint8 (height, width, 3) in red, green, blue, and their classes."""

    images: list[Bytes]
    classes: npt.NDArray[np.int64]  # (images,)
    names: tuple[str, ...]  # of the classes, <source>/<class>

    def of(self, sources: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which images are of these sources, (images,)."""
        chosen = np.array([name.split("/")[0] in sources for name in self.names])
        return np.asarray(chosen[self.classes])


def with_designs(corpus: Corpus, designs: int) -> Corpus:
    """The corpus and so many designs of every family of scenes, each a class of INSTANCES frames."""
    images, names = list(corpus.images), list(corpus.names)
    for family in scenes.FAMILIES:
        frames = scenes.render(family, torch.arange(designs), INSTANCES, SIDE)
        images += list(frames.flatten(0, 1).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy())
        names += [f"{SCENES}/{family} {design}" for design in range(designs)]
    added = np.arange(len(corpus.names), len(names)).repeat(INSTANCES)
    return Corpus(images, np.concatenate([corpus.classes, added]), tuple(names))


def read_corpus(folder: Path, without: Sequence[str] = ()) -> Corpus:
    """All images but those of the sources or classes `without`.

    Raises FitError where no image is left, one can't be read, or `without` names what is not there.
    """
    kinds = {f"{kind.parent.name}/{kind.name}": kind for kind in sorted(folder.glob("*/*/"))}
    if any(kind.parent.name == SCENES for kind in kinds.values()):
        raise FitError(f"{folder}/{SCENES}: made-up parts have that name; rename the folder")
    unknown = set(without) - set(kinds) - {kind.parent.name for kind in kinds.values()}
    if unknown:
        left = ", ".join(sorted(unknown))
        raise FitError(f"{folder} has no {left}; --without names its folders, as SOURCE or SOURCE/CLASS")
    images: list[Bytes] = []
    classes: list[int] = []
    names: list[str] = []
    for name, kind in kinds.items():
        if kind.parent.name in without or name in without:
            continue
        files = sorted(path for path in kind.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            continue
        for path in files:
            images.append(_read(path))
            classes.append(len(names))
        names.append(name)
    if not images:
        raise FitError(f"no images in {folder}; give a folder laid out as SOURCE/CLASS/IMAGE.jpg")
    return Corpus(images, np.array(classes), tuple(names))


def _read(path: Path) -> Bytes:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise FitError(f"{path} is no readable image; remove it from the corpus")
    return np.ascontiguousarray(pixels[..., ::-1], dtype=np.uint8)


def crop(
    image: Bytes, rng: np.random.Generator, size: int, share: tuple[float, float], degrees: float = 0.0
) -> Bytes:
    """A random square window, `share` of the shorter side wide, turned, as (size, size, 3)."""
    height, width = image.shape[:2]
    side = min(height, width) * rng.uniform(*share)
    x = rng.uniform(side / 2, width - side / 2)
    y = rng.uniform(side / 2, height - side / 2)
    angle = rng.uniform(-degrees, degrees)
    matrix = cv2.getRotationMatrix2D((x, y), angle, size / side)
    matrix[:, 2] += size / 2 - np.array((x, y))
    out = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(out, np.uint8)
