"""Time and memory of a large PatchCore fit by the user's command, and of adding frames to it.

    python -m benchmarks.patchcore_fit [--frames N] [--added N] [--json FILE]

320 frames of 256x256, ResNet-18, layer2 and layer3, a coreset of 10 %: 32,768 of 327,680 patches of 384
features, whose matrix of distances alone would take 430 GB. Weights are random (they change neither time nor
memory) and frames synthetic, both seeded. The exit code is 1 where a process of the fit has a peak of 3 GB
or more.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
from safetensors.numpy import save_file

from benchmarks._common import Words, calibrate, finish, new_report, scratch, table
from benchmarks.fit_memory import SEED, STAGES, Scene
from calibrate.backbones.resnet import state_shapes
from calibrate.backbones.weights import random_state
from inspectord.recipe import active_recipe

BACKBONE, SIDE_PX, CORESET = "resnet18", 256, "10%"
HIGHEST_PEAK_MB = 3000


def run(work: Path, frames: int, added: int) -> dict[str, Any]:
    """Fit, then extend; what each took."""
    scene, recipes = Scene(SIDE_PX), work / "recipes"
    good, weights = scene.write(work / "good", frames), work / "weights.safetensors"
    new = work / "new"
    new.mkdir()
    for number in range(frames, frames + added):
        cv2.imwrite(str(new / f"{number:04d}.png"), scene.frame(number))
    save_file(random_state(state_shapes(BACKBONE, STAGES), SEED), weights)
    model: Words = ["--model", "patchcore", "--backbone", BACKBONE, "--weights", weights]
    place: Words = ["--recipes", recipes, "--memory-mb", str(HIGHEST_PEAK_MB), "--no-activate"]
    found = {"fit": asdict(calibrate("fit", good, "--product", "part", "--coreset", CORESET, *model, *place))}
    calibrate("activate", "part", "--recipes", recipes)
    found["fit"] |= _about(recipes)
    if added:
        found["extend"] = asdict(calibrate("extend", "part", new, *place))
        calibrate("activate", "part", "--recipes", recipes)
        found["extend"] |= _about(recipes)
    return found


def _about(recipes: Path) -> dict[str, Any]:
    recipe = active_recipe(recipes, "part")
    parameters = recipe.spec.model.parameters
    files = [path for path in recipe.path.rglob("*") if path.is_file()]
    kept = [path for path in files if path.parent.name == "learned"]
    return {
        "members": parameters["members"],
        "recipe_mb": sum(path.stat().st_size for path in files if path not in kept) / 1e6,
        "kept_mb": sum(path.stat().st_size for path in kept) / 1e6,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time and memory of a large PatchCore fit.")
    parser.add_argument("--frames", type=int, default=320)
    parser.add_argument("--added", type=int, default=32, help="by calibrate extend; default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report = new_report()
    with scratch() as work:
        report["results"] = run(work, args.frames, args.added)
    names = ("seconds", "peak_mb", "members", "recipe_mb", "kept_mb")
    rows = [(step, *(found[name] for name in names)) for step, found in report["results"].items()]
    table((f"{args.frames} frames, {CORESET}; {args.added} added", *names), rows)
    finish(report, args.json)
    return 0 if report["results"]["fit"]["peak_mb"] < HIGHEST_PEAK_MB else 1


if __name__ == "__main__":
    sys.exit(main())
