"""A data set with made-up defects, from the good frames of a real one: how to choose without defective parts.

python -m benchmarks.struck FOLDER OUT; then python -m benchmarks.accuracy OUT

Of FOLDER/train/good every fourth frame, drawn by --seed, becomes test/good, and struck by a synthetic defect
test/struck, and test/faint with that change at 35 %; the others become train/good. The defects are those
of calibrate/pretrain/defects.py, of families that no weights in the package have seen. test/broad and
test/broad_faint have defects that cover much of the part instead, benchmarks/_broad.py. With --light every
frame for testing, good ones too, is seen under other light, focus and noise. Needs torch.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks._broad import broaden
from benchmarks._made import absent, told, write
from calibrate import texts
from calibrate.evaluation import GOOD
from calibrate.pretrain import defects, nuisance
from inspectord.errors import SourceError
from inspectord.sources.files import list_images, read_image

SHARE, FAINT = 4, 0.35  # every which frame is for testing; how much of a defect remains in test/faint
FAINT_OF = {"struck": "faint", "broad": "broad_faint"}


def make(folder: Path, out: Path, seed: int, light: float) -> int:
    """Write the data set; the number of frames for testing. light is a strength of nuisance.vary.

    Raises SourceError where there are too few frames or out is there, FrameError for an unreadable frame.
    """
    paths = list_images(folder / "train" / GOOD)
    if len(paths) < 2 * SHARE:
        raise SourceError(f"{folder}/train/good has {len(paths)} frames, at least {2 * SHARE} are needed")
    absent(out)
    numbers = np.random.default_rng(seed).permutation(len(paths)).tolist()
    # Numbered, for frames of two folders may share a name.
    named = [(f"{number:05d}_{paths[number].stem}", paths[number]) for number in numbers]
    chosen = named[: len(named) // SHARE]
    for frames, place in ((named[len(chosen) :], "train"), (chosen, "test")):
        (out / place / GOOD).mkdir(parents=True)
        for name, path in frames if place == "train" or not light else ():
            shutil.copyfile(path, out / place / GOOD / f"{name}{path.suffix}")
    generator, broadly, lamp = (torch.Generator().manual_seed(seed) for _ in range(3))
    families = [*defects.FAMILIES, *defects.HELD_OUT]
    for (name, path), (_, other) in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        good, channels = _read(path)
        if light:
            lit = nuisance.vary(good, lamp, light)
            write(out / "test" / GOOD / f"{name}.png", lit[0, :channels])
        source = _fitting(_read(other)[0], good)
        struck, mask = defects.strike(good, source, generator, families)
        broad = broaden(good, source, broadly)
        shows = (broad - good).abs().mean(1, keepdim=True) > defects.VISIBLE
        for kind, defective, where in (("struck", struck, mask), ("broad", broad, shows)):
            if where.any():  # else nothing would have shown
                faint = good + FAINT * (defective - good)
                for strength, image in ((kind, defective), (FAINT_OF[kind], faint)):
                    lit = nuisance.vary(image, lamp, light)
                    write(out / "test" / strength / f"{name}.png", lit[0, :channels])
                    write(out / "ground_truth" / strength / f"{name}_mask.png", where[0] * 255)
    return len(chosen)


def _read(path: Path) -> tuple[Tensor, int]:
    """A frame as three channels, (1, 3, height, width), and how many it has."""
    pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float()
    return pixels.expand(-1, 3, -1, -1), pixels.shape[1]


def _fitting(other: Tensor, good: Tensor) -> Tensor:
    if other.shape == good.shape:
        return other
    return torch.nn.functional.interpolate(other, size=good.shape[2:], mode="bilinear")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set; 0, or 65 and one line of what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with train/good")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--light",
        type=texts.number(0, float),
        default=0.0,
        metavar="STRENGTH",
        help="of other light, focus and noise, drawn anew for each frame for testing; 0.5: as of a lamp that "
        "ages, 1: strong; default: 0",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def made() -> str:
        count = make(options.folder, options.out, options.seed, options.light)
        return (
            f"{options.out}: {count} good frames for testing, struck, broadly struck, and both faintly\n"
            f"next: python -m benchmarks.accuracy {options.out}, which fits on its own train/good"
        )

    return told("struck", made)


if __name__ == "__main__":
    raise SystemExit(main())
