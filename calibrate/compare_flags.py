"""What calibrate compare takes: the same as fit, but for the model kinds. Light, as flags."""

from __future__ import annotations

import argparse
from pathlib import Path

from calibrate import flags, texts
from calibrate.options import MODELS, TRAINED

SOON = tuple(kind for kind in MODELS if kind not in TRAINED)  # these need no training


def add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    flags.add_good(parser)
    add(
        "--models",
        type=_models,
        default=SOON,
        metavar="A,B",
        help=f"of {', '.join(MODELS)}; default: {','.join(SOON)}, which need no training",
    )
    add(
        "--defective",
        type=Path,
        metavar="FOLDER",
        help="defective frames, or a data set with test/: measured too, for information alone",
    )
    add(
        "--deadline-ms",
        type=texts.number(0.1, float),
        metavar="MS",
        help="recommend no kind of which one frame in a hundred takes longer",
    )
    add("--html", type=Path, metavar="FILE", help="also write a page with every kind's maps")
    add("--json", type=Path, metavar="FILE", help="also write every figure and score there")
    add("--keep", type=Path, metavar="DIR", help="keep the recipes there, each under its kind's name")
    flags.add_region(parser)
    flags.add_of_model(parser.add_argument_group("of every model that takes it").add_argument)
    flags.add_training(parser)
    flags.add_box(parser)


def _models(text: str) -> tuple[str, ...]:
    kinds = texts.names(text)
    wrong = [kind for kind in kinds if kind not in MODELS]
    if wrong or len(set(kinds)) < len(kinds):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different ones of {', '.join(MODELS)}")
    return kinds
