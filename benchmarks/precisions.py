"""Every precision of ours beside anomalib's, in one process, all taking turns.

    python -m benchmarks.precisions [--models padim efficientad] [--profile] [--json FILE]

Ours is PaDiM with ResNet-18 as `calibrate fit` builds it, on anomalib's own random weights, and EfficientAD-S
with networks that nobody trained, in f32, bf16 and int8, and EfficientAD-Lite (8-bit convolutions, the rest
f32) beside it; anomalib's are the same models as its to_openvino exports them, in f32, bf16 and what OpenVINO
chooses by itself. 256x256 colour, batch 1; weights do not change the time. See anomalib_padim for what is
timed and where the exports come from.

A goal is a ratio of medians within a round. Where one is missed, and with --profile everywhere, the layers of
our graph follow, slowest first: the floor that the figure stands on. The exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov

from benchmarks import anomalib_padim as anomalib
from benchmarks._common import BENCH_DIR, finish, new_report, scratch, table
from benchmarks._layers import layers, print_layers
from calibrate.fit import modelled
from calibrate.graph import recipe_model, valid_cells
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.quantise import quantised
from calibrate.tiles import Joiner
from inspectord.inspect import compile_model

FRAMES, SIDE_PX = 40, 256
EXPORTERS = {"padim": "_anomalib_export.py", "efficientad": "_anomalib_efficientad_export.py"}
# Of ours over anomalib's, each a precision; None is what OpenVINO chooses.
GOALS = {
    "padim": {("f32", "f32"): 0.55, ("bf16", "bf16"): 0.60, ("int8", None): 0.36},
    "efficientad": {("f32", "f32"): 0.60, ("bf16", "bf16"): 0.60, ("int8", None): 0.35},
}


@dataclass(frozen=True)
class Side:
    """One graph as it is timed."""

    model: ov.Model
    request: ov.InferRequest
    pixels: np.ndarray
    hint: str


def good_frames(folder: Path) -> Path:
    """Colour textures, smooth with a little noise, as files."""
    folder.mkdir()
    for number in range(FRAMES):
        rng = np.random.default_rng([1, number])
        smooth = cv2.resize(rng.random((16, 16, 3)), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
        noisy = smooth + 0.05 * rng.standard_normal(smooth.shape)
        cv2.imwrite(str(folder / f"{number}.png"), (noisy.clip(0, 1) * 255).round().astype(np.uint8))
    return folder


def our_graphs(model: str, frames: Path, export_dir: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """A saved recipe graph and OpenVINO's hint for each precision; of EfficientAD also for Lite."""
    wanted = FitOptions(product="part", recipes_dir=folder, folders=(frames,), extendable=False)
    if model == "padim":
        weights = export_dir / "backbone.safetensors"
        wanted = dataclasses.replace(wanted, model="padim", backbone="resnet18", weights=weights)
    else:
        weights = export_dir / "teacher.safetensors"
        wanted = dataclasses.replace(wanted, model="efficientad-s", extendable=None, weights=weights)
    found = {}
    for name in ("f32", "bf16", "int8"):
        plan = prepare(dataclasses.replace(wanted, precision=name), Silent())
        if name == "int8":
            read = [plan.good.read(number) for number in range(len(plan.good))]
            plan = dataclasses.replace(plan, graph=quantised(plan.graph, read))
        whole = modelled(plan, folder, Silent())[0] if model == "padim" else _untrained(plan)
        found[name] = folder / f"{model}_{name}.xml", plan.hint
        ov.serialize(whole, found[name][0])
    if model == "efficientad":
        lite = prepare(dataclasses.replace(wanted, model="efficientad-lite", weights=None), Silent())
        found["lite"] = folder / "lite.xml", "f32"
        ov.serialize(_untrained(lite), found["lite"][0])
    return found


def _untrained(plan: Any) -> ov.Model:
    """EfficientAD's recipe graph, without the training that would have come first."""
    from calibrate.efficientad.kind import Identity  # needs torch

    valid = valid_cells(plan.geometry, plan.region.ignored)
    joiner = Joiner(plan.geometry, valid, plan.smoothing_px / plan.geometry.cell)
    return recipe_model(plan.graph, Identity(), joiner, None)


def our_side(xml: Path, hint: str, threads: int) -> Side:
    model = ov.Core().read_model(xml)
    request = compile_model(xml, "CPU", hint, threads).create_infer_request()
    return Side(model, request, anomalib.example_input(model), hint)


def their_side(xml: Path, precision: str | None, threads: int) -> Side:
    core = ov.Core()
    model = anomalib.load(core, xml)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    compiled = core.compile_model(model, "CPU", settings)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Side(model, compiled.create_infer_request(), anomalib.example_input(model), hint)


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One model in all precisions of both sides: times, ratios, and the layers of what misses its goal."""
    export_dir = args.export_dir / name
    exporter = Path(__file__).resolve().parent / EXPORTERS[name]
    export = anomalib.prepare(args.venv, export_dir, exporter)
    theirs_xml = export_dir / export["model"]
    with scratch() as folder:
        ours = our_graphs(name, good_frames(folder / "good"), export_dir, folder)
        sides = {("ours", each): our_side(xml, hint, args.threads) for each, (xml, hint) in ours.items()}
        for each in ("f32", "bf16", None):
            sides["anomalib", each] = their_side(theirs_xml, each, args.threads)
        requests, inputs = zip(*((side.request, side.pixels) for side in sides.values()), strict=True)
        durations = anomalib.take_turns(list(requests), list(inputs), args.warm_up, args.rounds)
        times = dict(zip(sides, durations.T, strict=True))
        found = _ratios(name, times)
        for each in [row["ours"] for row in found if args.profile or not row["reached"]]:
            side = sides["ours", each]
            profile = layers(side.model, side.hint, args.threads, side.pixels)
            next(row for row in found if row["ours"] == each)["layers"] = profile
    return {
        "exported_with": export["versions"],
        "ms": [_spread(*key, sides[key].hint, ms) for key, ms in times.items()],
        "ratios": found,
    }


def _ratios(name: str, times: dict[tuple[str, str | None], np.ndarray]) -> list[dict[str, Any]]:
    found = []
    for (mine, their), goal in GOALS[name].items():
        ratio = times["ours", mine] / times["anomalib", their]
        middle = float(np.median(ratio))
        low, high = (float(value) for value in np.percentile(ratio, (5, 95)))
        found.append(
            {"ours": mine, "anomalib": their or "default", "ratio": middle, "p05": low, "p95": high}
            | {"goal": goal, "reached": middle <= goal}
        )
    return found


def _spread(side: str, precision: str | None, hint: str, ms: np.ndarray) -> dict[str, Any]:
    low, middle, high = (float(value) for value in np.percentile(ms, (10, 50, 90)))
    facts = {"side": side, "precision": precision or "default", "hint": hint}
    return facts | {"median": middle, "p10": low, "p90": high}


def print_result(name: str, result: dict[str, Any]) -> None:
    table(
        (f"{name}, ms", "precision", "hint", "median", "p10", "p90"), [row.values() for row in result["ms"]]
    )
    head = ("ours / anomalib", "precisions", "ratio", "5 %", "95 %", "goal", "")
    rows = [
        ("", f"{x['ours']} / {x['anomalib']}", x["ratio"], x["p05"], x["p95"], x["goal"], _verdict(x))
        for x in result["ratios"]
    ]
    table(head, rows)
    for row in result["ratios"]:
        if "layers" in row:
            print_layers(f"{name} {row['ours']}", row["layers"])


def _verdict(row: dict[str, Any]) -> str:
    return "reached" if row["reached"] else "MISSED"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every precision of ours beside anomalib's.")
    parser.add_argument("--models", nargs="+", choices=tuple(GOALS), default=list(GOALS))
    parser.add_argument("--venv", type=Path, default=BENCH_DIR / "anomalib-venv")
    parser.add_argument("--export-dir", type=Path, default=BENCH_DIR / "anomalib-precisions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=10, help="rounds that are run but not counted")
    parser.add_argument("--profile", action="store_true", help="show the layers of every one of our graphs")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report = new_report()
    results = {}
    for name in args.models:
        results[name] = compare(name, args)
        print_result(name, results[name])
    finish(report | {"results": results}, args.json)
    return 0 if all(row["reached"] for result in results.values() for row in result["ratios"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
