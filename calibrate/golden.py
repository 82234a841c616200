"""The parity gate, in a fresh process: what a daemon will load is what gets scored.

`python -m calibrate.golden` reads a request as JSON from standard input. A process of its own proves that
the files alone suffice, and keeps the fit's memory and the compiled model's apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from inspectord.errors import FitError, InspectordError
from inspectord.frame import Pixels


@dataclass(frozen=True)
class Scored:
    """What the compiled graph says of some frames."""

    scores: npt.NDArray[np.float64]  # (frames,)
    tile_scores: npt.NDArray[np.float64]  # (frames, tiles)
    maps: npt.NDArray[np.float32]  # (the first frames, rows, columns)


def write_frame(path: Path, pixels: Pixels) -> Path:
    """Write a frame, (height, width, channels), as an image file; path. Raises FitError where it can't."""
    if not cv2.imwrite(str(path), pixels):
        raise FitError(f"can't write {path}; is the disk full?")
    return path


def score_in_fresh_process(
    model: Path, device: str, precision: str, threads: int, frames: list[Path], folder: Path, mapped: int = 0
) -> Scored:
    """Score image files with a saved graph, and keep the maps of the first `mapped` ones.

    folder takes a temporary file. Raises FitError.
    """
    out = folder / "scored.npz"
    request = {
        "model": str(model),
        "device": device,
        "precision": precision,
        "threads": threads,
        "frames": [str(frame) for frame in frames],
        "mapped": mapped,
        "out": str(out),
    }
    _run(request)
    with np.load(out, allow_pickle=False) as arrays:
        return Scored(arrays["scores"], arrays["tile_scores"], arrays["maps"])


def check_in_fresh_process(recipe: Path, threads: int) -> None:
    """What a daemon does at its start: load, verify, repeat the golden scores. Raises FitError."""
    _run({"recipe": str(recipe), "threads": threads})


def _run(request: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "calibrate.golden"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        why = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FitError(f"the new recipe failed its parity gate and was not published: {why[-1]}")


def _score(request: dict[str, Any]) -> None:
    from inspectord.inspect import compile_model
    from inspectord.sources.files import read_image

    compiled = compile_model(
        Path(request["model"]), request["device"], request["precision"], request["threads"]
    )
    infer = compiled.create_infer_request()
    scores, tiles = [], []
    maps: list[npt.NDArray[np.float32]] = []
    for path in request["frames"]:
        infer.infer([read_image(Path(path))[None]])
        scores.append(float(infer.get_tensor("score").data.flat[0]))
        tiles.append(infer.get_tensor("tile_scores").data.astype(np.float64))
        if len(maps) < request["mapped"]:
            maps.append(infer.get_tensor("anomaly_map").data.copy())
    np.savez(request["out"], scores=np.array(scores), tile_scores=np.array(tiles), maps=np.array(maps))


def _check(request: dict[str, Any]) -> None:
    from inspectord.inspect import Inspector, check_golden
    from inspectord.recipe import load_recipe

    check_golden(Inspector(load_recipe(Path(request["recipe"])), threads=request["threads"]))


def main() -> int:
    request = json.loads(sys.stdin.read())
    try:
        _check(request) if "recipe" in request else _score(request)
    except InspectordError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
