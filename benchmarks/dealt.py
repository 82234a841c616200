"""A real data set with its good frames dealt anew: is a figure about defects, or about good parts?

python -m benchmarks.dealt FOLDER OUT; then python -m benchmarks.accuracy FOLDER OUT

All good frames of FOLDER, of train and test, are drawn by --seed into as many of each again; defective frames
and masks stay. Where AUROC is much higher on OUT, FOLDER's good test parts are of kinds that did not teach
(`calibrate evaluate` notes it). Frames that show one and the same part must not be dealt apart: then OUT
flatters. Files are links to FOLDER's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks._made import absent, told
from calibrate.evaluation import GOOD
from calibrate.texts import number
from inspectord.sources.files import list_images


def deal(folder: Path, out: Path, seed: int) -> tuple[int, int]:
    """Write the data set; good frames for teaching and for testing. Raises SourceError where out is there."""
    absent(out)
    train, test = (list_images(folder / place / GOOD) for place in ("train", "test"))
    # Numbered, for a frame of train and one of test may share a name.
    named = [(f"{index:05d}_{path.name}", path) for index, path in enumerate([*train, *test])]
    order, edge = np.random.default_rng(seed).permutation(len(named)), len(train)
    for place, chosen in (("train", order[:edge]), ("test", order[edge:])):
        for name, path in (named[index] for index in chosen):
            _link(path, out / place / GOOD / name)
    for kind in sorted((folder / "test").iterdir()):
        if kind.is_dir() and kind.name != GOOD:  # file by file: who digests a set follows no folder's link
            for path in list_images(kind):
                _link(path, out / "test" / kind.name / path.relative_to(kind))
    if (folder / "ground_truth").is_dir():
        _link(folder / "ground_truth", out / "ground_truth")
    return edge, len(named) - edge


def _link(to: Path, at: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to.resolve())


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set; 0, or 65 and one line of what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="with train/good, test/good, test/<defect>"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--seed", type=number(0), default=0)
    options = parser.parse_args(arguments)

    def dealt() -> str:
        taught, tested = deal(options.folder, options.out, options.seed)
        return f"{options.out}: {taught} good frames to teach, {tested} to test"

    return told("dealt", dealt)


if __name__ == "__main__":
    raise SystemExit(main())
