"""PaDiM on the bundled networks beside anomalib's, each as its own user would run it, taking turns.

    python -m benchmarks.lite_padim [--json FILE]

Ours is fitted by `calibrate fit --model padim` on grey parts of the simulated line, 256x256, and compiled as
the daemon compiles it. anomalib's is its PaDiM with ResNet-18, in the precision that OpenVINO chooses by
itself; see anomalib_padim for how it is made and what is timed. The exit code is 1 where the pairwise
median of lite / anomalib is above a fifth.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import openvino as ov

from benchmarks import anomalib_padim as anomalib
from benchmarks._common import BENCH_DIR, calibrate, finish, new_report, scratch, table, write_parts
from inspectord.inspect import compile_model
from inspectord.recipe import Recipe, active_recipe

SIDE_PX = 256
FRAMES = 100
SEED = 20262
NETWORKS = ("lite", "standard")  # steady takes as long as standard
GOAL = 0.20


def multiply_adds(model: ov.Model) -> int:
    """Of all convolutions of one inference: output values times the kernel that makes each of them."""
    total = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            _, inputs, height, width = node.input(1).get_shape()
            total += math.prod(node.output(0).get_shape()) * inputs * height * width
    return total


def fitted(folder: Path) -> dict[str, Recipe]:
    """A recipe of each network, by its name, from the same good parts of the simulated line."""
    parts = write_parts(folder / "good", FRAMES, SIDE_PX, SEED)
    recipes = folder / "recipes"
    for name in NETWORKS:
        calibrate(
            "fit", "--model", "padim", "--backbone", name, "--product", name, "--recipes", recipes, parts
        )
    return {name: active_recipe(recipes, name) for name in NETWORKS}


def compare(recipe: Recipe, theirs_xml: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both graphs' times, and what they were."""
    core = ov.Core()
    models = [anomalib.load(core, recipe.model_path), anomalib.load(core, theirs_xml)]
    runtime = recipe.spec.runtime
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": args.threads}
    theirs = core.compile_model(models[1], "CPU", settings)
    ours = compile_model(recipe.model_path, "CPU", runtime.precision, args.threads)
    requests = [ours.create_infer_request(), theirs.create_infer_request()]
    inputs = [anomalib.example_input(model) for model in models]
    durations = anomalib.take_turns(requests, inputs, args.warm_up, args.rounds)
    return {
        "precision": {
            "ours": runtime.precision,
            "anomalib": theirs.get_property("INFERENCE_PRECISION_HINT").to_string(),
        },
        "multiply_adds": multiply_adds(models[0]),
        **anomalib.summarise(durations),
    }


def print_result(name: str, result: dict[str, Any]) -> None:
    rows = [
        (name if side == "ours" else side, result["precision"][side], *result[f"{side}_ms"].values())
        for side in ("ours", "anomalib")
    ]
    table(("one inference, ms", "precision", "median", "p10", "p90"), rows)
    ratio = result["ratio"]
    print(
        f"{name} / anomalib {ratio['median']:.3f}, pairwise median "
        f"(5-95 %: {ratio['p05']:.3f} to {ratio['p95']:.3f}), goal of lite {GOAL:.2f}; "
        f"its convolutions: {result['multiply_adds'] / 1e6:.0f} million multiply-adds"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="PaDiM on the bundled networks beside anomalib's.")
    parser.add_argument("--venv", type=Path, default=BENCH_DIR / "anomalib-venv")
    parser.add_argument("--export-dir", type=Path, default=BENCH_DIR / "anomalib-padim")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20, help="rounds that are run but not counted")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report = new_report()
    export = anomalib.prepare(args.venv, args.export_dir)
    with scratch() as folder:
        theirs = args.export_dir / export["model"]
        results = {name: compare(recipe, theirs, args) for name, recipe in fitted(folder).items()}
    for name, result in results.items():
        print_result(name, result)
    finish(report | {"anomalib": export["versions"], "results": results}, args.json)
    return 0 if results["lite"]["ratio"]["median"] <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
