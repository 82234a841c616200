"""Good frames of one made-up design, for benchmarks.struck: how parts are told that lie alike, or anyhow.

python -m benchmarks.scenes FAMILY OUT [--lie any]; then python -m benchmarks.struck OUT STRUCK

FAMILY is one of calibrate/pretrain/scenes.py; knitted, wood, solar and turning no weights in the package
have seen. --lie any turns each part of moulded, stamped, screws, pills, wires or turning by an angle of its
own, --lie alike leaves them as on a fixture, a few pixels and degrees off; so it does text, inks, board and
solar. Needs torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._made import absent, told, write
from calibrate import texts
from calibrate.pretrain import scenes

SIZE_PX = 256  # unless asked for
FREE = {"any": 1.0, "alike": 0.0}
LYING = ("moulded", "stamped", "screws", "pills", "wires", "turning", "text", "inks", "board", "solar")


def draw(family: str, out: Path, design: int, frames: int, lie: str | None, size: int) -> str:
    """Write OUT/train/good; what to do next. Raises SourceError where out is there or can't be written."""
    absent(out)
    free = None if lie is None else FREE[lie]
    images = scenes.render(family, torch.tensor([design]), frames, size, free=free)[0]
    for number, image in enumerate(images):
        write(out / "train" / "good" / f"{number:04d}.png", image.flip(0))
    return f"{out}: {frames} good frames; next: python -m benchmarks.struck {out} OUT"


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
    parser.add_argument("--size", type=texts.number(64), default=SIZE_PX, metavar="PX", help="default: 256")
    options = parser.parse_args(arguments)
    if options.lie is not None and options.family not in LYING:
        parser.error(
            f"--lie: {options.family} has no place of its own; leave it out, or take {', '.join(LYING)}"
        )
    torch.set_num_threads(1)
    wanted = options.family, options.out, options.design, options.frames, options.lie, options.size
    return told("scenes", lambda: draw(*wanted))


if __name__ == "__main__":
    raise SystemExit(main())
