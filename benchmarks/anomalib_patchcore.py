"""PatchCore's graph beside anomalib's, with the same weights and the same bank: equal, and how fast.

    python -m benchmarks.anomalib_patchcore [--members N ...] [--json FILE]

ResNet-18, layer2 and layer3, 256 x 256, random weights. anomalib's PatchCore is exported as anomalib_padim
says, where it also says what is timed and how to get the venv; its bank is read from there and put into the
graph that calibrate fit would publish with --absolute. First the two are compared on images that neither has
seen: distances of all patches, the map that anomalib makes of them (scaled up, then blurred), and with
--reweight 9, anomalib's own number, the score (Roth et al. 2022, eq. 7). Then both are timed, taking turns:
ours in float32, the only precision that keeps a bank's distances, without and with re-weighting; anomalib's
in float32, and in what OpenVINO chooses by itself. The exit code is 1 where anything differs by more than
1e-3, or the pairwise median of ours / anomalib in float32 is above a half.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov

from benchmarks import anomalib_padim as anomalib
from benchmarks._common import BENCH_DIR, finish, new_report, table
from benchmarks.anomalib_padim import LARGEST_DIFFERENCE, SIDE_PX
from calibrate.backbones import open_backbone
from calibrate.bank import Bank
from calibrate.graph import feature_model, recipe_model, strides
from calibrate.padim import reduce_dimensions
from calibrate.reweight import Reweighted
from calibrate.tiles import Joiner, plan
from calibrate.winograd import quickened
from inspectord.inspect import compile_model
from inspectord.recipe import FrameSpec

EXPORTER = Path(__file__).resolve().parent / "_anomalib_patchcore_export.py"
LAYERS = ("layer2", "layer3")
GOAL = 0.5


def prepare(venv: Path, export_dir: Path, members: int) -> dict[str, Any]:
    """What export.json under export_dir says; makes venv and export first unless the export is there."""
    marker = export_dir / "export.json"
    if not marker.exists():
        anomalib.make_venv(venv)
        anomalib.run([venv / "bin" / "python", EXPORTER, export_dir, "--members", str(members)])
    facts: dict[str, Any] = json.loads(marker.read_text())
    return facts


def our_graph(weights: Path, members: np.ndarray, neighbours: int) -> ov.Model:
    """The graph of calibrate fit --absolute --smoothing 0; re-weighted where there are neighbours."""
    backbone = open_backbone("resnet18", weights, LAYERS)
    steps, channels = strides(backbone, 3)
    geometry = plan((0, 0, SIDE_PX, SIDE_PX), min(steps), max(steps))
    everything = reduce_dimensions(channels, sum(channels), "random", 0)
    spec = FrameSpec(width=SIDE_PX, height=SIDE_PX, pixel_format="BGR8")
    features = quickened(feature_model(spec, geometry, backbone, everything, None, locally_aware=True), "f32")
    counting = np.ones((1, geometry.map_shape[0] * geometry.map_shape[1]), np.bool_)
    centre = members.mean(axis=0, dtype=np.float64).astype(np.float32)
    bank = Bank(members - centre, centre, np.zeros((counting.size, 0), np.float32))
    scorer = Reweighted(bank, counting, neighbours) if neighbours else None
    return recipe_model(
        features, bank, Joiner(geometry, np.ones(geometry.map_shape, bool), 0.0), None, scorer
    )


def differences(plain: ov.Model, weighted: ov.Model, reference: Any) -> dict[str, float]:
    """The largest difference of ours to anomalib's torch model, relative to an image's largest value."""
    requests = [compile_model(model, "CPU", "f32", 2).create_infer_request() for model in (plain, weighted)]
    worst = dict.fromkeys(("distances", "map", "score"), 0.0)
    for number, image in enumerate(reference["images"]):
        for request in requests:
            request.infer([np.ascontiguousarray(image[None, ..., ::-1])])  # it is RGB, ours takes BGR
        ours = requests[0].get_tensor("anomaly_map").data
        pairs = {
            "distances": (ours, reference["distance"][number]),
            "map": (anomalib.blurred(ours, cv2.INTER_NEAREST), reference["anomaly_map"][number]),
            "score": (requests[1].get_tensor("score").data, reference["pred_score"][number]),
        }
        anomalib.widen(worst, pairs)
    return worst


def timed(
    ours: ov.Model, theirs_xml: Path, precision: str | None, args: argparse.Namespace
) -> dict[str, Any]:
    """One pairing's times; precision is anomalib's, None for what OpenVINO chooses."""
    core = ov.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": args.threads}
    settings |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    model = anomalib.load(core, theirs_xml)
    theirs = core.compile_model(model, "CPU", settings)
    requests = [
        compiled.create_infer_request()
        for compiled in (compile_model(ours, "CPU", "f32", args.threads), theirs)
    ]
    inputs = [anomalib.example_input(each) for each in (ours, model)]
    durations = anomalib.take_turns(requests, inputs, args.warm_up, args.rounds)
    chosen = theirs.get_property("INFERENCE_PRECISION_HINT").to_string()
    return {"anomalib_precision": chosen, **anomalib.summarise(durations)}


def compare(members: int, args: argparse.Namespace) -> dict[str, Any]:
    """One size of bank: differences, and times of the three pairings."""
    export_dir = args.export_dir / str(members)
    export = prepare(args.venv, export_dir, members)
    with np.load(export_dir / "reference.npz") as reference:
        arrays = dict(reference)
    weights = export_dir / "backbone.safetensors"
    plain, weighted = (our_graph(weights, arrays["memory_bank"], n) for n in (0, export["neighbours"]))
    found: dict[str, Any] = {"exported_with": export["versions"], "times": {}}
    found["differences"] = differences(plain, weighted, arrays)
    theirs = export_dir / export["model"]
    if not args.no_times:
        found["times"] = {
            "f32": timed(plain, theirs, "f32", args),
            "f32, ours re-weighted": timed(weighted, theirs, "f32", args),
            "anomalib as it comes": timed(plain, theirs, None, args),
        }
    return found


def is_good(found: dict[str, Any]) -> bool:
    fast = not found["times"] or found["times"]["f32"]["ratio"]["median"] <= GOAL
    return fast and all(value <= LARGEST_DIFFERENCE for value in found["differences"].values())


def print_result(members: str, found: dict[str, Any]) -> None:
    print(f"a bank of {members}, largest differences relative to anomalib's torch model:")
    table(tuple(found["differences"]), [tuple(found["differences"].values())])
    rows = [
        (
            name,
            each["anomalib_precision"],
            *(each[side]["median"] for side in ("ours_ms", "anomalib_ms", "ratio")),
            each["ratio"]["p05"],
            each["ratio"]["p95"],
        )
        for name, each in found["times"].items()
    ]
    if rows:
        table(("medians", "anomalib in", "ours ms", "anomalib ms", "ours / anomalib", "p05", "p95"), rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="PatchCore's graph beside anomalib's, same weights and bank."
    )
    parser.add_argument("--members", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--venv", type=Path, default=BENCH_DIR / "anomalib-venv")
    parser.add_argument("--export-dir", type=Path, default=BENCH_DIR / "anomalib-patchcore")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=5, help="rounds that are run but not counted")
    parser.add_argument("--no-times", action="store_true", help="only compare what they compute")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report = new_report()
    report["members"] = {str(members): compare(members, args) for members in args.members}
    for members, found in report["members"].items():
        print_result(members, found)
    finish(report, args.json)
    good = all(is_good(found) for found in report["members"].values())
    print(
        f"equal within {LARGEST_DIFFERENCE:g}, at most {GOAL} of anomalib's time: {'yes' if good else 'NO'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
