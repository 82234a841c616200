"""Good frames of one made-up design, for benchmarks.struck: how parts are told that lie alike, or anyhow.

python -m benchmarks.scenes FAMILY OUT [--lie any]; then python -m benchmarks.struck OUT STRUCK

FAMILY is one of calibrate/pretrain/scenes.py; knitted, wood, solar and turning no weights in the package
have seen. --lie any turns each part of moulded, stamped, screws, pills, wires or turning by an angle of its
own, --lie alike leaves them as on a fixture, a few pixels and degrees off; so it does text, inks, board and
solar. Needs torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch

from calibrate import texts
from calibrate.pretrain import scenes
from inspectord.errors import SourceError

SIZE_PX = 256
FREE = {"any": 1.0, "alike": 0.0}
LYING = ("moulded", "stamped", "screws", "pills", "wires", "turning", "text", "inks", "board", "solar")


def draw(family: str, out: Path, design: int, frames: int, lie: str | None) -> None:
    """Write OUT/train/good. Raises SourceError where out is there or can't be written."""
    if out.exists():
        raise SourceError(f"{out} exists; give another folder")
    good = out / "train" / "good"
    good.mkdir(parents=True)
    free = None if lie is None else FREE[lie]
    for number, image in enumerate(
        scenes.render(family, torch.tensor([design]), frames, SIZE_PX, free=free)[0]
    ):
        path, pixels = good / f"{number:04d}.png", image.permute(1, 2, 0).round().to(torch.uint8).numpy()
        if not cv2.imwrite(str(path), pixels[:, :, ::-1]):
            raise SourceError(f"{path} can't be written; is the disk full?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw them; 0, or 65 and one line of what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=(*scenes.FAMILIES, *scenes.HELD_OUT), metavar="FAMILY")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--design", type=texts.count, default=7, metavar="N", help="which; default: 7")
    parser.add_argument("--frames", type=texts.number(1), default=240, metavar="N", help="default: 240")
    parser.add_argument("--lie", choices=tuple(FREE), help="how the parts lie; default: as the design says")
    options = parser.parse_args(arguments)
    if options.lie is not None and options.family not in LYING:
        parser.error(
            f"--lie: {options.family} has no place of its own; leave it out, or take {', '.join(LYING)}"
        )
    torch.set_num_threads(1)
    try:
        draw(options.family, options.out, options.design, options.frames, options.lie)
    except (SourceError, OSError) as error:
        print(f"scenes: {error}", file=sys.stderr)
        return 65
    print(f"{options.out}: {options.frames} good frames; next: python -m benchmarks.struck {options.out} OUT")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
