"""PaDiM as calibrate fits and compiles it beside anomalib's own: the same weights, frames and numbers?

    python -m benchmarks.padim_parity [--json FILE]

ResNet-18 with random weights, layers 1 to 3, and the 100 channels that anomalib chose. Both are taught by the
same 120 frames of 256 x 256, anomalib by its torch model (exported as anomalib_padim says, which also says
how to get the venv), ours by its own statistics, with anomalib's 0.01001 on the covariances' diagonals. Then
both are asked of four frames that neither has seen, ours by the compiled graph: distances of all patches
(Defard et al. 2021, eq. 2), the map that anomalib makes of them, scaled up and blurred, and its highest
value, which is anomalib's score. The exit code is 1 where anything differs by more than 1e-3.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov

from benchmarks import anomalib_padim as anomalib
from benchmarks._common import BENCH_DIR, finish, new_report, scratch, table
from benchmarks.anomalib_padim import LARGEST_DIFFERENCE, SIDE_PX
from calibrate import padim
from calibrate.backbones import open_backbone
from calibrate.graph import Reduction, feature_model, recipe_model, strides
from calibrate.heads import WhiteningWriter
from calibrate.tiles import Joiner, plan
from calibrate.winograd import quickened
from inspectord.inspect import compile_model
from inspectord.recipe import FrameSpec

LAYERS = ("layer1", "layer2", "layer3")
EPSILON = 0.01001
BLOCK = 256  # positions whose features are in memory together, in float64


def our_graph(weights: Path, reference: dict[str, np.ndarray], folder: Path) -> ov.Model:
    """The graph of calibrate fit --model padim --absolute --smoothing 0, taught by the reference's frames."""
    backbone = open_backbone("resnet18", weights, LAYERS)
    steps, channels = strides(backbone, 3)
    geometry = plan((0, 0, SIDE_PX, SIDE_PX), min(steps), max(steps))
    firsts = np.cumsum([0, *channels])
    index = np.sort(reference["channel_index"])
    chosen = tuple(
        index[(index >= first) & (index < last)] - first for first, last in itertools.pairwise(firsts)
    )
    spec = FrameSpec(width=SIDE_PX, height=SIDE_PX, pixel_format="BGR8")
    features = quickened(feature_model(spec, geometry, backbone, Reduction(chosen), None), "f32")
    request = compile_model(features, "CPU", "f32", 2).create_infer_request()
    embeddings = np.stack([_asked(request, image).copy() for image in reference["fit_images"]], 1)
    writer = WhiteningWriter(folder, geometry.positions, len(index))
    for start in range(0, geometry.positions, BLOCK):
        mean, covariance = padim.gaussians(embeddings[start : start + BLOCK].astype(np.float64), EPSILON)
        spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        writer.write(start, mean, spread, padim.whiten(covariance))
    joiner = Joiner(geometry, np.ones(geometry.map_shape, np.bool_), 0.0)
    return recipe_model(features, writer, joiner, None)


def _asked(request: ov.InferRequest, image: np.ndarray) -> np.ndarray:
    """What a graph's first output says of an image; anomalib's are RGB, ours takes BGR."""
    request.infer([np.ascontiguousarray(image[None, ..., ::-1])])
    found: np.ndarray = request.get_output_tensor(0).data
    return found


def differences(ours: ov.Model, reference: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of ours to anomalib's torch model, relative to an image's largest value."""
    request = compile_model(ours, "CPU", "f32", 2).create_infer_request()
    worst = dict.fromkeys(("distances", "map", "score"), 0.0)
    for number, image in enumerate(reference["images"]):
        _asked(request, image)
        distance = request.get_tensor("anomaly_map").data
        blurred = anomalib.blurred(distance, cv2.INTER_LINEAR)
        pairs = {
            "distances": (distance, reference["distance"][number]),
            "map": (blurred, reference["anomaly_map"][number]),
            "score": (blurred.max(), reference["pred_score"][number]),
        }
        anomalib.widen(worst, pairs)
    return worst


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="PaDiM beside anomalib's, same weights and frames.")
    parser.add_argument("--venv", type=Path, default=BENCH_DIR / "anomalib-venv")
    parser.add_argument("--export-dir", type=Path, default=BENCH_DIR / "anomalib-padim")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report: dict[str, Any] = new_report()
    report["exported_with"] = anomalib.prepare(args.venv, args.export_dir)["versions"]
    with np.load(args.export_dir / "reference.npz") as file, scratch() as folder:
        reference = dict(file)
        ours = our_graph(args.export_dir / "backbone.safetensors", reference, folder)
        found = report["differences"] = differences(ours, reference)
    print("largest differences relative to anomalib's torch model:")
    table(tuple(found), [tuple(found.values())])
    finish(report, args.json)
    return 0 if all(value <= LARGEST_DIFFERENCE for value in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
