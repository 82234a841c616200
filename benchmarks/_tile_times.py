"""Times of a saved recipe's graph beside its backbone's for one tile, or the peak memory of the graph alone.

    python -m benchmarks._tile_times MODEL SIDE_PX THREADS ROUNDS JSON [BACKBONE TILES]

A process of its own for benchmarks.tile_ensemble: without a backbone it does what a daemon does, and no more,
so that its peak is a daemon's.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from inspectord.inspect import compile_model

WARM_UP = 1


def seconds(request: ov.InferRequest, pixels: np.ndarray, times: int = 1) -> float:
    """Of so many inferences, one after the other."""
    began = time.perf_counter()
    for _ in range(times):
        request.infer([pixels], share_inputs=True, share_outputs=True)
    return time.perf_counter() - began


def main(model: str, side_px: str, threads: str, rounds: str, out: str, *beside: str) -> int:
    """Each round is a whole frame, then as many single tiles through the backbone as the frame has."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, int(side_px), int(side_px), 1)).astype(np.uint8)
    request = compile_model(Path(model), "CPU", "f32", int(threads)).create_infer_request()
    found: dict[str, Any] = {"frame_s": [], "tiles_s": []}
    backbone, tiles = None, 0
    if beside:
        backbone = compile_model(Path(beside[0]), "CPU", "f32", int(threads)).create_infer_request()
        tiles = int(beside[1])
        tile = rng.random(tuple(backbone.model_inputs[0].shape), np.float32) * 255
    for round_ in range(WARM_UP + int(rounds)):
        took = seconds(request, frame)
        alone = seconds(backbone, tile, tiles) if backbone is not None else 0.0
        if round_ >= WARM_UP:
            found["frame_s"].append(took)
            found["tiles_s"].append(alone)
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
