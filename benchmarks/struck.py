"""A data set with made-up defects, from the good frames of a real one: how to choose without defective parts.

python -m benchmarks.struck FOLDER OUT; then python -m benchmarks.accuracy OUT

Of FOLDER/train/good every fourth frame, drawn by --seed, becomes test/good, and struck by a synthetic defect
test/struck, and test/faint with that change at 35 %; the others become train/good. The defects are those
of calibrate/pretrain/defects.py, of families that no weights in the package have seen. Needs torch.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from calibrate.evaluation import GOOD
from calibrate.pretrain import defects
from inspectord.errors import FrameError, InspectordError, SourceError
from inspectord.sources.files import list_images

SHARE, FAINT = 4, 0.35  # every which frame is for testing; how much of a defect remains in test/faint


def make(folder: Path, out: Path, seed: int) -> int:
    """Write the data set; the number of frames for testing. Raises SourceError where it can't be written."""
    paths = list_images(folder / "train" / GOOD)
    if len(paths) < 2 * SHARE:
        raise SourceError(f"{folder}/train/good has {len(paths)} frames, at least {2 * SHARE} are needed")
    if out.exists():
        raise SourceError(f"{out} exists; give another folder")
    order = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]
    chosen = order[: len(order) // SHARE]
    for names, place in ((order[len(chosen) :], "train"), (chosen, "test")):
        (out / place / GOOD).mkdir(parents=True)
        for path in names:
            shutil.copyfile(path, out / place / GOOD / path.name)
    generator = torch.Generator().manual_seed(seed)
    families = [*defects.FAMILIES, *defects.HELD_OUT]
    for path, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        good = _read(path)
        struck, mask = defects.strike(good, _fitting(_read(other), good), generator, families)
        if mask.any():  # else nothing would have shown
            _write(out, "struck", path.stem, struck, mask)
            _write(out, "faint", path.stem, good + FAINT * (struck - good), mask)
    return len(chosen)


def _read(path: Path) -> Tensor:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise FrameError(f"{path} is no readable image; remove it")
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()


def _fitting(other: Tensor, good: Tensor) -> Tensor:
    if other.shape == good.shape:
        return other
    return torch.nn.functional.interpolate(other, size=good.shape[2:], mode="bilinear")


def _write(out: Path, kind: str, name: str, image: Tensor, mask: Tensor) -> None:
    grey = bool((image == image[:, :1]).all())  # as the frames that were copied are
    for path, values in (
        (out / "test" / kind / f"{name}.png", image[0, : 1 if grey else 3].permute(1, 2, 0).round()),
        (out / "ground_truth" / kind / f"{name}_mask.png", mask[0, 0] * 255),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), values.to(torch.uint8).numpy()):
            raise SourceError(f"{path} can't be written; is the disk full?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set; 0, or 65 and one line of what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with train/good")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        count = make(options.folder, options.out, options.seed)
    except InspectordError as error:
        print(f"struck: {error}")
        return 65
    print(f"{options.out}: {count} frames for testing, good, struck and faint")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
