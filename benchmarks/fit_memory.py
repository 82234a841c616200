"""Time and memory of two large fits, and the larger one's graph against plain float64 statistics.

    python -m benchmarks.fit_memory [--case wide|small|both] [--json FILE] [--keep FOLDER]

wide    WideResNet-50-2, 550 dimensions, 391 frames of 224x224: the original PaDiM code needs over 35 GB
small   ResNet-18, 100 dimensions, 209 frames of 256x256, the size of an MVTec AD category

Weights are random (they change neither time nor memory) and frames synthetic, both seeded. The statistics
of the wide recipe are then repeated at 16 positions with nothing but numpy in float64, from the embeddings
of all frames, and compared with the distances in the recipe's own graph, cut behind its head: for golden
frames, for frames that were never fitted, and for the marked frame that no limit should let pass.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openvino as ov
from safetensors.numpy import save_file

from benchmarks._common import Words, calibrate, finish, new_report, scratch, table
from calibrate.backbones.resnet import state_shapes
from calibrate.backbones.weights import random_state
from calibrate.options import FitOptions
from calibrate.plan import Plan, prepare
from calibrate.progress import Silent
from inspectord.frame import Pixels
from inspectord.inspect import compile_model
from inspectord.recipe import Recipe, active_recipe
from inspectord.sources.files import read_image

Doubles = npt.NDArray[np.float64]
SEED = 20261
STAGES = 3  # of the network; the fourth is never used
POSITIONS = 16
UNSEEN = 5
LARGEST_DIFFERENCE = 1e-4  # relative


@dataclass(frozen=True)
class Case:
    """One fit; limit_s is the time it must stay below, None where only memory is asked for."""

    backbone: str
    dimensions: int
    frames: int
    side_px: int
    limit_s: float | None = None


CASES = {
    "wide": Case("wide_resnet50_2", dimensions=550, frames=391, side_px=224),
    "small": Case("resnet18", dimensions=100, frames=209, side_px=256, limit_s=60.0),
}


class Scene:
    """Seeded colour frames of one object: a fixed texture, a smooth change from frame to frame, and noise."""

    def __init__(self, side_px: int) -> None:
        self._side_px = side_px
        self._texture = self._smooth(np.random.default_rng(SEED), 24, 50.0)

    def frame(self, number: int) -> Pixels:
        """uint8 of shape (side, side, 3); the same number always gives the same frame."""
        rng = np.random.default_rng([SEED, number])
        change = self._smooth(rng, 6, 8.0)
        noise = rng.standard_normal(self._texture.shape, np.float32) * 4.0
        return np.asarray(np.clip(np.rint(128 + self._texture + change + noise), 0, 255), np.uint8)

    def write(self, folder: Path, count: int) -> Path:
        folder.mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(folder / f"{number:04d}.png"), self.frame(number))
        return folder

    def _smooth(self, rng: np.random.Generator, cells: int, levels: float) -> npt.NDArray[np.float32]:
        coarse = rng.standard_normal((cells, cells, 3), np.float32) * levels
        return np.asarray(cv2.resize(coarse, (self._side_px, self._side_px), interpolation=cv2.INTER_CUBIC))


# --- the recipe's distances, and the same from nothing but numpy ---


def positions_of(plan: Plan) -> npt.NDArray[np.int64]:
    """Positions spread over rows and columns of the grid."""
    rows, columns = plan.geometry.tile_grid
    number = np.arange(POSITIONS)
    row = (number * (rows - 1)) // (POSITIONS - 1)
    column = ((number * 7) % POSITIONS * (columns - 1)) // (POSITIONS - 1)
    return np.asarray(row * columns + column, np.int64)


def embeddings(plan: Plan, frames: Iterable[Pixels], at: npt.NDArray[np.int64]) -> Doubles:
    """Embeddings (positions, frames, d) at some positions, from the feature graph."""
    request = _request(plan, plan.graph)
    found = []
    for frame in frames:
        request.infer([frame[None]])
        found.append(request.get_output_tensor(0).data[at].astype(np.float64))
    return np.stack(found, axis=1)


def _request(plan: Plan, model: ov.Model) -> ov.InferRequest:
    """A model compiled as the recipe runs."""
    options = plan.options
    compiled = compile_model(model, options.device, options.precision, options.threads)
    return compiled.create_infer_request()


def distances(taught: Doubles, asked: Doubles, epsilon: float) -> Doubles:
    """Mahalanobis distances (positions, frames) of asked to the Gaussians of taught, both (positions, n, d).

    Written as in the paper (Defard et al. 2021, eq. 1 and 2), with no line of calibrate.
    """
    found = np.empty(asked.shape[:2])
    for position, (x, y) in enumerate(zip(taught, asked, strict=True)):
        covariance = np.cov(x, rowvar=False) + epsilon * np.eye(x.shape[1])
        away = y - x.mean(axis=0)
        found[position] = np.sqrt(np.sum(away * np.linalg.solve(covariance, away.T).T, axis=1))
    return found


def cut_behind_head(model: ov.Model, positions: int) -> ov.Model:
    """The recipe's graph with one more output, "distances" (positions,): what its head gives."""
    kinds = ("Sqrt", "TensorIterator")
    found = [node for node in model.get_ordered_ops() if node.get_type_name() in kinds]
    heads = [node for node in found if list(node.output(0).get_shape()) == [positions]]
    if len(heads) != 1:
        raise SystemExit(f"{len(heads)} outputs of shape [{positions}] look like the head's, not one")
    output = heads[0].output(0)
    output.get_tensor().set_names({"distances"})
    model.add_outputs(output)
    return model


def graph_distances(
    plan: Plan, recipe: Recipe, frames: list[Pixels], at: npt.NDArray[np.int64]
) -> tuple[Doubles, Doubles]:
    """Distances (positions, frames) and scores (frames,) of the recipe's graph as saved."""
    model = cut_behind_head(ov.Core().read_model(recipe.model_path), plan.positions)
    request = _request(plan, model)
    found, scores = np.empty((len(at), len(frames))), np.empty(len(frames))
    for number, frame in enumerate(frames):
        request.infer([frame[None]])
        found[:, number] = request.get_tensor("distances").data[at]
        scores[number] = request.get_tensor("score").data.flat[0]
    return found, scores


def checked(plan: Plan, recipe: Recipe, unseen: list[Pixels]) -> dict[str, Any]:
    """Largest relative difference between the graph's distances and float64's, a kind of frame each."""
    at = positions_of(plan)
    golden = recipe.golden()
    frames = [read_image(frame.path) for frame in golden]  # the marked one comes last
    cases = {"golden good": frames[:-1], "unseen": unseen, "marked": frames[-1:]}
    taught = embeddings(plan, map(plan.good.read, range(len(plan.good))), at)
    differences: dict[str, Any] = {}
    for kind, asked in cases.items():
        expected = distances(taught, embeddings(plan, asked, at), plan.options.epsilon)
        found, scores = graph_distances(plan, recipe, asked, at)
        differences[kind] = {
            "frames": len(asked),
            "distances": expected.size,
            "lowest": float(expected.min()),
            "highest": float(expected.max()),
            "largest_relative_difference": float(np.max(np.abs(found - expected) / expected)),
        }
        if kind != "unseen":
            stored = np.array(
                [frame.score for frame in (golden[:-1] if kind == "golden good" else golden[-1:])]
            )
            # The output that was added must not have changed what the graph computes.
            differences[kind]["score_against_recipe"] = float(np.max(np.abs(scores - stored) / stored))
    return differences


# --- the fits ---


def run(case: Case, work: Path, keep: Path | None, check: bool) -> dict[str, Any]:
    """Fit by the user's command, weigh it, and compare its graph where asked."""
    scene, recipes = Scene(case.side_px), work / "recipes"
    good, weights = scene.write(work / "good", case.frames), work / "weights.safetensors"
    save_file(random_state(state_shapes(case.backbone, STAGES), SEED), weights)
    options: Words = ["--model", "padim", "--backbone", case.backbone, "--weights", weights]
    options += ["--dimensions", str(case.dimensions)]
    took = calibrate("fit", good, "--product", case.backbone, "--recipes", recipes, *options)
    recipe = active_recipe(recipes, case.backbone)
    found = asdict(case) | {
        "seconds": took.seconds,
        "peak_mb": took.peak_mb,
        "recipe_mb": sum((recipe.path / name).stat().st_size for name in recipe.spec.files) / 1e6,
    }
    if check:
        plan = prepare(
            FitOptions(
                product=case.backbone,
                recipes_dir=recipes,
                folders=(good,),
                model="padim",
                backbone=case.backbone,
                weights=weights,
                dimensions=case.dimensions,
            ),
            Silent(),
        )
        found["positions"] = plan.positions
        found["differences"] = checked(plan, recipe, [scene.frame(case.frames + n) for n in range(UNSEEN)])
    if keep is not None:
        shutil.copytree(recipe.path, keep / case.backbone, dirs_exist_ok=True)
    return found


def is_good(result: dict[str, Any]) -> bool:
    """Below its time, and equal to float64 where that was asked for."""
    in_time = result["limit_s"] is None or result["seconds"] < result["limit_s"]
    worst = [kind["largest_relative_difference"] for kind in result.get("differences", {}).values()]
    return in_time and all(value <= LARGEST_DIFFERENCE for value in worst)


def print_report(report: dict[str, Any]) -> None:
    """For a reader at a terminal."""
    names = ("backbone", "dimensions", "frames", "side_px", "seconds", "limit_s", "peak_mb", "recipe_mb")
    results = report["cases"]
    table(("fit", *names), [(name, *(found[key] for key in names)) for name, found in results.items()])
    for name, found in results.items():
        if "differences" not in found:
            continue
        where = f"{POSITIONS} of {found['positions']} positions"
        print(f"{name}: distances in the graph against float64, at {where}")
        columns = ("frames", "lowest", "highest", "largest_relative_difference", "score_against_recipe")
        rows = [(kind, *(each.get(key) for key in columns)) for kind, each in found["differences"].items()]
        table(("case", *columns), rows)
    print(f"all within limits: {'yes' if report['good'] else 'NO'} ({LARGEST_DIFFERENCE:g} for differences)")


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where a fit takes too long or its graph differs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fit_memory", description="Time, memory and exactness of large fits."
    )
    parser.add_argument("--case", choices=(*CASES, "both"), default="both")
    parser.add_argument("--frames", type=int, help="other numbers of frames, to try it out")
    parser.add_argument("--dimensions", type=int, help="other numbers of dimensions, to try it out")
    parser.add_argument("--check-small", action="store_true", help="compare the small fit's graph as well")
    parser.add_argument("--keep", type=Path, help="copy the recipes to this folder, as FOLDER/BACKBONE")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report, results = new_report(), {}
    for name in CASES if args.case == "both" else (args.case,):
        values = asdict(CASES[name])
        changes = {key: getattr(args, key) for key in ("frames", "dimensions") if getattr(args, key)}
        with scratch() as work:
            results[name] = run(Case(**values | changes), work, args.keep, name == "wide" or args.check_small)
    report |= {"cases": results, "good": all(is_good(found) for found in results.values())}
    print_report(report)
    finish(report, args.json)
    return 0 if report["good"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
