"""Time of a recipe's graph on this machine, compiled and fed as the daemon does it.

    python -m benchmarks._latency RECIPE JSON

A process of its own for benchmarks.accuracy, so that one model's memory and threads never meet another's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import percentiles
from inspectord.inspect import SCORE_LIMIT_S, Inspector
from inspectord.recipe import Recipe, load_recipe
from inspectord.sources.files import read_image

THREADS = 2
WARM_UP, FEWEST, MOST = 5, 20, 200  # rounds
ENOUGH_S = 5.0


def latency(recipe: Recipe) -> dict[str, Any]:
    """Milliseconds of one golden frame, from bound memory to finished outputs."""
    inspector = Inspector(recipe, threads=THREADS)
    inspector.bind([np.ascontiguousarray(read_image(recipe.golden()[0].path))[None]])
    for _ in range(WARM_UP):
        _seconds(inspector)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() - began < ENOUGH_S):
        times.append(1e3 * _seconds(inspector))
    load = round(os.getloadavg()[0], 2)
    return {"threads": THREADS, "rounds": len(times), "load_1min": load, **percentiles(times, (50, 90))}


def _seconds(inspector: Inspector) -> float:
    began = time.perf_counter()
    inspector.start(0)
    if not inspector.wait(SCORE_LIMIT_S):
        raise SystemExit(f"latency: no answer from {inspector.device} within {SCORE_LIMIT_S:.0f} s")
    return time.perf_counter() - began


def about(recipe: Recipe) -> dict[str, Any]:
    """What a reader of the figures wants to know of the recipe."""
    spec = recipe.spec
    files = [recipe.path / name for name in spec.files]
    return {
        "kind": spec.model.kind,
        "backbone": spec.model.backbone,
        "parameters": spec.model.parameters,
        "frame": spec.frame.model_dump(mode="json"),
        "tiles": spec.tiles.model_dump(mode="json"),
        "precision": spec.runtime.precision,
        "good_parts": spec.limits.good_parts,
        "hash": recipe.hash,
        "mb": sum(path.stat().st_size for path in files) / 1e6,
        "is_blind": recipe.is_blind,
    }


def main(recipe_path: str, json_path: str) -> int:
    recipe = load_recipe(Path(recipe_path))
    found = {"recipe": about(recipe), "latency_ms": latency(recipe)}
    Path(json_path).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
