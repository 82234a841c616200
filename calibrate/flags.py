"""What each command takes. Light: --help loads no library."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from calibrate import texts
from calibrate.options import MODELS

ENOUGH_FRAMES = 300  # 299 good parts, none over the limit, prove at most 1 false reject in 100


def add_recipes(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("INSPECTORD_RECIPES_DIR") or "recipes")
    parser.add_argument(
        "--recipes",
        dest="recipes_dir",
        type=Path,
        default=default,
        metavar="DIR",
        help="folder of all recipes; default: $INSPECTORD_RECIPES_DIR, else ./recipes",
    )


def add_fit(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of FitOptions; dest is the field's name."""
    add = parser.add_argument
    add_good(parser)
    add("--product", required=True, metavar="NAME", help="what the recipe is for, as in flange")
    add_recipes(parser)
    add("--no-activate", dest="activate", action="store_false", help="store the recipe, change nothing else")
    add(
        "--extendable",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep what calibrate extend needs in the recipe's folder; default: where that is at most 200 MB",
    )
    add_region(parser)
    _add_ensemble(parser)
    _add_model(parser)
    add_training(parser)
    add_box(parser)
    _add_workers(parser)


def add_good(parser: argparse.ArgumentParser) -> None:
    """The good frames, and what their limit is to keep."""
    _add_frames(parser, "known-good images, or a captured run", "1/1000")
    parser.add_argument(
        "--folds",
        type=texts.folds,
        metavar="loo|run|N",
        help="how parts are held out: each alone, a folder at a time, N groups; default: loo",
    )


def _add_frames(parser: argparse.ArgumentParser, which: str, rate: str) -> None:
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help=which)
    add(
        "--max-false-rejects",
        dest="max_false_reject_rate",
        type=texts.rate,
        metavar="RATE",
        help=f"share of good parts that may be rejected, as in 1/1000 or 0.1%%; default: {rate}",
    )
    add("--skip-bad", action="store_true", help="leave out unreadable and blank images, and name them")


def add_region(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where to look, in pixels of the frame").add_argument
    add("--roi", type=texts.roi, metavar="X,Y,W,H", help="only this rectangle")
    add("--ignore", dest="ignore_png", type=Path, metavar="PNG", help="white pixels don't count")
    add(
        "--ignore-polygon",
        dest="ignore_polygons",
        type=texts.polygon,
        action="append",
        metavar='"X,Y X,Y X,Y"',
        help="nothing inside counts; may be repeated",
    )
    add("--letterbox", type=texts.pair, metavar="WxH", help="scale and pad images of mixed sizes to this one")
    add(
        "--resize",
        type=texts.number(16),
        metavar="N",
        help="scale down to N pixels on the shorter side, of which 16 make a map cell (with --layers joined "
        "8); default: untiled frames to the area of 512x512, smaller ones up; with --layers joined, lite and "
        "networks that you bring down to 256x256",
    )
    add("--tile", type=texts.number(16), metavar="SIZE", help="cut into square tiles, for small defects")
    add(
        "--overlap",
        type=texts.count,
        metavar="N",
        help="pixels that neighbouring tiles share; default: 0",
    )
    add("--grid", type=texts.pair, metavar="RxC", help="cut into rows x columns instead of --tile")


def _add_ensemble(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("tiles, with --tile or --grid").add_argument
    add(
        "--per-tile",
        action="store_true",
        help="a model of its own for each tile's place (patchcore: a bank, efficientad-...: networks, padim "
        "has it in any case)",
    )
    add(
        "--score",
        dest="top_tiles",
        type=texts.top_tiles,
        metavar="max|top-K",
        help="the frame's score: of its highest tile, or the mean of its K highest; default: max",
    )
    add(
        "--normalise",
        choices=("joined", "tile"),
        help="by what is usual at each place of the joined map, or each tile by its own good scores before "
        "they are joined; default: joined",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("fitting positions or tiles at the same time").add_argument
    add(
        "--jobs",
        type=texts.number(1),
        metavar="N",
        help="in so many processes, each with one thread; --memory-mb holds for all together; default: 1",
    )
    add(
        "--on",
        type=texts.cluster,
        metavar="dask://HOST:PORT",
        help="by the workers of this dask scheduler instead",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the model").add_argument
    add(
        "--model",
        choices=MODELS,
        help="patchcore: what is normal anywhere, whether parts lie alike or at any angle; padim: what is "
        "normal at each place, in less time, for parts that lie alike; patchcore-seg, padim-seg: these, and "
        "networks that were shown made-up defects on the good frames (needs torch); efficientad-s, -m, "
        "-lite: a network trained on the good frames (needs torch), lite for CPUs; default: patchcore",
    )
    add(
        "--adapt",
        type=texts.adapt,
        metavar="auto|off|MINUTES",
        help="adapt patchcore or padim to the part, which is --model patchcore-seg or padim-seg, by a "
        "training of so many minutes at most; auto: of 5, where it can be had (torch, 80 good frames, "
        "memory) and finds more; default: off",
    )
    add_of_model(add)


def add_of_model(add: Callable[..., object]) -> None:
    """What a fit and a comparison take of the model, besides its kind."""
    add(
        "--backbone",
        metavar="NAME|FILE",
        help="lite, standard or steady (trained under other light), which need no --weights, mobilenet_v2, "
        "resnet18, resnet34, resnet50, wide_resnet50_2 or an .onnx/.xml file; default: bundled, which is "
        "standard",
    )
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the backbone's weights, .pth or .safetensors; with lite, standard and steady, calibrate "
        "pretrain's; the teacher's for efficientad-m, as in teacher_medium.pth, and for efficientad-s "
        "instead of its own",
    )
    add(
        "--layers",
        type=texts.names,
        metavar="A,B",
        help="layers of the backbone to take features from; default: of standard and steady pooled; of lite "
        "joined, which looks at frames of 256x256 in less time, but pooled in tiles; of others the papers'",
    )
    add(
        "--dimensions",
        type=texts.number(1),
        metavar="N",
        help="features kept; default: padim 100 or all where there are fewer, of many tiles less (of 100 "
        "of 256 pixels 88); patchcore all",
    )
    add("--reduction", choices=("random", "semi-orthogonal"), help="how they are chosen; default: random")
    add("--seed", type=texts.count, metavar="N", help="of every random choice; default: 0")
    add("--augment", type=texts.count, metavar="N", help="shifted and turned copies a frame; default: 0")
    add("--epsilon", type=texts.number(1e-9, float), help="padim: added to the variances; default: 0.01")
    add(
        "--coreset",
        type=texts.coreset,
        metavar="P%|N",
        help="patchcore: share or number of the good patches to keep; default: 50%%, at most 4096",
    )
    add(
        "--position-weight",
        type=texts.number(0, float),
        metavar="W",
        help="patchcore: what a patch's place counts; 1: as much as its looks across the frame; default: 0",
    )
    add(
        "--reweight",
        type=texts.number(2),
        metavar="N",
        help="patchcore with --absolute: the paper's image score, which asks how alone the nearest good "
        "patch is among its N neighbours (anomalib: 9); default: off",
    )
    add(
        "--surroundings",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="padim, patchcore: features less what the patches around foretell; default: with patchcore on "
        "the bundled networks, unless --absolute, where there are enough good frames to learn it",
    )
    add(
        "--relight",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="not efficientad: every frame is brought to the good frames' brightness, contrast and slope of "
        "light, as far as a lamp or an exposure changes these (then a part that is all over up to a sixth "
        "darker or brighter passes where it covers half of the frame or more, or lies on black or white), "
        "and with patchcore what else other light does counts less; default: on the bundled networks, "
        "unless --absolute",
    )
    add(
        "--absolute",
        action="store_true",
        help="score distances as they are, not in multiples of what is usual there and in the frame",
    )
    add(
        "--smoothing",
        dest="smoothing_px",
        type=texts.number(0, float),
        metavar="PIXELS",
        help="blur of the anomaly map, sigma, in pixels as scaled; default: 4, and at least half a cell",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """What a fit and a comparison take of the kinds that are trained."""
    add = parser.add_argument_group("training, with --model efficientad-... or ...-seg").add_argument
    add(
        "--steps",
        type=texts.number(1),
        metavar="N",
        help="default for efficientad-s and -m: 70000, the paper's; for ...-seg: at most 500 a network",
    )
    add(
        "--minutes",
        type=texts.number(0.01, float),
        metavar="M",
        help="instead of --steps: by the clock, so that two fits may differ: as many as this box does in so "
        "long; ...-seg: in at most so long; default for efficientad-lite: 4, for ...-seg: 5",
    )
    add("--train-device", choices=("cpu", "cuda"), help="of efficientad-...; default: cpu")


def add_box(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("this box").add_argument
    add("--device", help="OpenVINO device that the daemon will use, as in CPU or GPU; default: CPU")
    add(
        "--precision",
        choices=("f32", "bf16", "f16", "int8"),
        help="that the daemon will use; int8 is refused where it would find fewer defects; default: f32",
    )
    add(
        "--max-int8-loss",
        type=texts.number(0, float),
        metavar="SHARE",
        help="int8: most that AUROC on synthetic defects, or the order of scores, may lose; default: 0.02",
    )
    _add_limits(add)


def _add_limits(add: Callable[..., object]) -> None:
    add("--threads", type=texts.count, metavar="N", help="default: 0, all cores")
    add(
        "--memory-mb",
        type=texts.number(700),
        metavar="N",
        help="memory to keep within, as far as frame and tiles allow; default: 1500",
    )


def add_extend(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of extend.Wanted."""
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="PRODUCT (its active version) or PRODUCT/VERSION")
    _add_frames(parser, "new known-good images, or a captured run", "as the recipe")
    add_recipes(parser)
    add("--no-activate", dest="activate", action="store_false", help="store the recipe, change nothing else")
    _add_limits(add)


def add_capture(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder to make; it must not exist yet")
    add("--frames", type=texts.number(1), default=ENOUGH_FRAMES, metavar="N", help="default: %(default)s")
    add(
        "--wait",
        type=texts.number(0.1, float),
        default=30.0,
        metavar="SECONDS",
        help="give up after so long without a usable frame; default: %(default)g",
    )
    add("--note", default="", metavar="TEXT", help="kept in run.toml: who, which light, which lot")
    where = parser.add_argument_group("from one of").add_mutually_exclusive_group(required=True).add_argument
    where("--config", type=Path, metavar="FILE", help="a camera of inspectord's configuration")
    where("--cti", type=Path, metavar="FILE", help="a camera through this GenTL producer")
    where("--folder", type=Path, metavar="DIR", help="image files")
    where("--video", type=Path, metavar="FILE", help="a video file")
    where("--line", action="store_true", default=None, help="the simulated line, without defects")
    _add_source(parser)


def _add_source(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("more of the source").add_argument
    add("--camera", metavar="NAME", help="with --config: which one, where there are several")
    add("--serial", help="with --cti: the camera's serial number")
    add("--model", help="with --cti: the camera's model")
    add("--user-id", help="with --cti: the camera's user-defined name")
    add(
        "--feature",
        type=texts.feature,
        action="append",
        metavar="NAME=VALUE",
        help="with --cti: set a camera feature, as in PixelFormat=Mono8; may be repeated",
    )
    add("--size", type=texts.pair, metavar="WxH", help="with --line: of its frames; default: 256x256")
    add(
        "--seed",
        type=texts.count,
        metavar="N",
        help="with --line: other seeds make other parts; default: 0",
    )
    add(
        "--rate",
        type=texts.number(0.01, float),
        metavar="HZ",
        help="with --line, --folder, --video: frames a second; default: 10 for --line, else no pause",
    )


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", type=Path, metavar="CORPUS", help="photographs, laid out as SOURCE/CLASS/IMAGE.jpg")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="checkpoint and weights; a run that was stopped continues here",
    )
    add(
        "--network",
        choices=("lite", "standard", "pdn-s"),
        default="standard",
        help="standard or lite, the backbones, or pdn-s, the teacher of efficientad-s, which learns from "
        "lite; default: standard",
    )
    add("--steps", type=texts.number(1), metavar="N", help="default: 5000")
    add("--rate", type=texts.number(1e-9, float), help="of learning; default: 0.002, pdn-s: 0.001")
    add(
        "--contrast",
        type=texts.count,
        default=0,
        metavar="N",
        help="steps that follow, in which a backbone learns to tell places apart under other light, as "
        "steady has for 500; default: none",
    )
    add(
        "--start",
        type=Path,
        metavar="FILE",
        help="standard: weights to go on from with the steps of --contrast alone",
    )
    add("--seed", type=texts.count, default=0, metavar="N", help="of everything random; default: 0")
    add(
        "--without",
        type=texts.names,
        default=(),
        metavar="A,B/C",
        help="sources or classes to leave out, kept for choosing between trainings",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add("--threads", type=texts.count, default=0, metavar="N", help="default: 0, all cores")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="PRODUCT (its active version), PRODUCT/VERSION or a recipe's folder"
    )
    add_recipes(parser)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="with test/good, test/DEFECT and, for pixels, ground_truth",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure and score there")
    parser.add_argument("--threads", type=texts.count, default=0, metavar="N", help="default: 0, all cores")


def add_product(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("product", metavar="PRODUCT")
    add_recipes(parser)


def add_activate(parser: argparse.ArgumentParser) -> None:
    _add_version(parser)
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="also a blind one, which passes a frame with a large square painted over",
    )


def _add_version(parser: argparse.ArgumentParser) -> None:
    add_product(parser)
    parser.add_argument("version", nargs="?", metavar="VERSION", help="2 or 0002; default: the newest")


def add_keygen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="for both files; made where it is missing"
    )


def add_sign(parser: argparse.ArgumentParser) -> None:
    _add_version(parser)
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        metavar="PEM",
        help="Ed25519 private key: of calibrate keygen, or of openssl genpkey -algorithm ed25519",
    )
