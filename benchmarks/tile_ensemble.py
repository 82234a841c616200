"""What a frame of many tiles costs beside its backbone alone, and how that grows from 1 tile to 64.

    python -m benchmarks.tile_ensemble [--backbones NAME ...] [--sides PIXELS ...] [--profile] [--json FILE]

PaDiM over tiles of 256x256: every position of every tile has its own Gaussian. The other side is the backbone
alone, compiled for one tile and run once for each: both in one process, taking turns. The peak memory is of
another process, which does what a daemon does. Statistics and the weights of resnet18 are random: they change
neither time nor memory. Wanted are at most GOAL times the backbone for the frame of most tiles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op
from safetensors.numpy import save_file

from benchmarks._common import finish, measured, new_report, scratch, table
from benchmarks._layers import layers, print_layers
from calibrate.backbones import BUNDLED, Backbone, open_backbone
from calibrate.backbones.joined import POOLED
from calibrate.backbones.resnet import state_shapes
from calibrate.backbones.weights import random_state
from calibrate.graph import Reduction, feature_model, recipe_model, strides, valid_cells
from calibrate.heads import WhiteningWriter
from calibrate.levels import Levels, Wide, sample, wide_cells
from calibrate.padim import DIMENSIONS, reduce_dimensions
from calibrate.plan import usual_smoothing_px
from calibrate.tiles import Blur, Geometry, Joiner, plan
from calibrate.winograd import quickened
from inspectord.recipe import FrameSpec

TILE = 256
GOAL = 1.10
SEED = 20263
STAGES = 3  # of the network; the fourth is never used


def backbone_of(name: str, folder: Path) -> Backbone:
    if name in ("bundled", *BUNDLED):
        return open_backbone(name, None, (POOLED,))
    weights = folder / f"{name}.safetensors"
    save_file(random_state(state_shapes(name, STAGES), SEED), weights)
    return open_backbone(name, weights, None)


def ensemble(
    backbone: Backbone, side_px: int, dimensions: int, folder: Path
) -> tuple[ov.Model, Geometry, Reduction]:
    """A recipe's graph for grey frames of this side, in tiles of TILE, with random statistics."""
    frame = FrameSpec(width=side_px, height=side_px, pixel_format="Mono8")
    steps, channels = strides(backbone, 1)
    geometry = plan((0, 0, side_px, side_px), min(steps), max(steps), tile=TILE)
    reduction = reduce_dimensions(channels, dimensions, "random", SEED)
    features = quickened(feature_model(frame, geometry, backbone, reduction, None, one_by_one=True), "f32")
    valid = valid_cells(geometry, None)
    joiner = Joiner(geometry, valid, usual_smoothing_px(geometry.cell) / geometry.cell)
    wide = Wide(Blur(valid, wide_cells(geometry.cell)), 1.0)
    levels = Levels(np.ones(geometry.map_shape), sample(valid), 0.8, 1.2, wide)
    head = statistics(geometry, reduction.dimensions, folder)
    return recipe_model(features, head, joiner, levels), geometry, reduction


def statistics(geometry: Geometry, dimensions: int, folder: Path) -> WhiteningWriter:
    """Gaussians of all positions, the same few again and again."""
    rows, columns = geometry.tile_grid
    positions, rng = geometry.tiles * rows * columns, np.random.default_rng(SEED)
    writer = WhiteningWriter(folder, positions, dimensions)
    block = min(512, rows * columns)
    mean = rng.standard_normal((block, dimensions))
    whitening = np.tril(rng.standard_normal((block, dimensions, dimensions)))
    for start in range(0, positions, block):
        writer.write(start, mean, np.ones_like(mean), whitening)
    return writer


def alone(backbone: Backbone, reduction: Reduction) -> ov.Model:
    """The backbone for one tile: the features that PaDiM takes, and nothing else."""
    image = op.parameter([1, 1, TILE, TILE], ov.Type.f32)
    maps = backbone.features(image.output(0), reduction.chosen)
    return quickened(ov.Model([op.result(each) for each in maps], [image], "backbone"), "f32")


def case(
    backbone: Backbone, side_px: int, dimensions: int, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One size of frames: times of both sides, and the peak of a process with the graph alone."""
    model, geometry, reduction = ensemble(backbone, side_px, dimensions, folder)
    ov.serialize(model, folder / "model.xml")
    del model
    ov.serialize(alone(backbone, reduction), folder / "backbone.xml")
    words = [str(folder / "model.xml"), str(side_px), str(args.threads), str(args.rounds)]
    run = [sys.executable, "-m", "benchmarks._tile_times", *words, str(folder / "times.json")]
    beside = [str(folder / "backbone.xml"), str(geometry.tiles)]
    peak_mb = measured(run).peak_mb
    measured([*run, *beside])
    times = {name: np.array(row) for name, row in json.loads((folder / "times.json").read_text()).items()}
    ratio = times["frame_s"] / times["tiles_s"]
    return {
        "tiles": geometry.tiles,
        "positions": geometry.tiles * int(np.prod(geometry.tile_grid)),
        "frame_ms": float(np.median(times["frame_s"])) * 1e3,
        "tile_ms": float(np.median(times["frame_s"])) * 1e3 / geometry.tiles,
        "backbone_ms": float(np.median(times["tiles_s"])) * 1e3 / geometry.tiles,
        "ratio": float(np.median(ratio)),
        "ratio_p10": float(np.percentile(ratio, 10)),
        "ratio_p90": float(np.percentile(ratio, 90)),
        "peak_mb": peak_mb,
        "recipe_mb": (folder / "model.bin").stat().st_size / 1e6,
    }


def print_cases(name: str, dimensions: int, cases: list[dict[str, Any]]) -> None:
    head = (
        "tiles",
        "positions",
        "frame, ms",
        "a tile, ms",
        "its backbone, ms",
        "ratio",
        "p10",
        "p90",
        "peak MB",
    )
    keys = ["positions", "frame_ms", "tile_ms", "backbone_ms", "ratio", "ratio_p10", "ratio_p90", "peak_mb"]
    print(f"PaDiM, {name}, {dimensions} features:")
    held = "held" if cases[-1]["ratio"] <= GOAL else "missed"
    table((*head, "recipe MB"), [(x["tiles"], *(x[key] for key in keys), x["recipe_mb"]) for x in cases])
    print(f"at most {GOAL:.2f} for {cases[-1]['tiles']} tiles: {held}")


def profile(folder: Path, side_px: int, threads: int) -> list[dict[str, Any]]:
    """Where the last case's time goes."""
    frame = np.random.default_rng(0).integers(0, 256, (1, side_px, side_px, 1)).astype(np.uint8)
    return layers(ov.Core().read_model(folder / "model.xml"), "f32", threads, frame)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tile_ensemble", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--backbones", nargs="+", default=["standard", "lite", "resnet18"])
    parser.add_argument("--sides", nargs="+", type=int, default=[256, 512, 1024, 2048], metavar="PIXELS")
    parser.add_argument("--dimensions", nargs="+", type=int, default=[DIMENSIONS, 48], help="features kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="also show where the last frame's time goes")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report = new_report()
    for name, dimensions in itertools.product(args.backbones, args.dimensions):
        with scratch() as folder:
            backbone = backbone_of(name, folder)
            cases = [case(backbone, side_px, dimensions, args, folder) for side_px in args.sides]
            print_cases(name, dimensions, cases)
            found: dict[str, Any] = {"cases": cases}
            if args.profile:
                found["layers"] = profile(folder, args.sides[-1], args.threads)
                print_layers(name, found["layers"])
        report[f"{name}_{dimensions}"] = found
    finish(report, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
