"""A tiny but complete recipe for tests: local contrast as an OpenVINO graph, scored, hashed and activated."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import openvino.opset13 as ops
import tomli_w

from inspectord.recipe import content_hash, file_hash

CELL = 8  # frame pixels per cell of the anomaly map


def good_frame(width: int = 64, height: int = 64, channels: int = 1, seed: int = 0) -> np.ndarray:
    """An even grey part with a little noise; uint8 of shape (height, width, channels)."""
    noise = np.random.default_rng(seed).integers(-3, 4, (height, width, channels))
    return (128 + noise).astype(np.uint8)


def write_good_frames(folder: Path, seeds: Iterable[int], width: int = 256, height: int = 256) -> Path:
    """Grey frames of these seeds as files; the folder, which is made where it is not there."""
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        cv2.imwrite(str(folder / f"{seed}.png"), good_frame(width, height, seed=seed)[..., 0])
    return folder


def bad_frame(width: int = 64, height: int = 64, channels: int = 1, seed: int = 0) -> np.ndarray:
    """The same part with a bright square at (16, 24), 4 pixels wide and high."""
    frame = good_frame(width, height, channels, seed)
    frame[24:28, 16:20] = 255
    return frame


def contrast_graph(shape: tuple[int, int, int], work: int = 0, least: float = 0.0) -> ov.Model:
    """Greatest |pixel - local mean| / local mean per cell; NaN for a black frame, as 0/0 is.

    shape is (height, width, channels). work chains so many products of 1024 x 1024 matrices, to be slow. A
    mean below `least` counts as that: then a black frame has a score, too.
    """
    height, width, channels = shape
    frame = ops.parameter([1, height, width, channels], np.uint8, name="frame")
    pixels = ops.transpose(ops.convert(frame, np.float32), np.array([0, 3, 1, 2]))
    grey = ops.reduce_mean(pixels, np.array([1]), keep_dims=True)
    mean = ops.avg_pool(grey, [1, 1], [4, 4], [4, 4], [9, 9], exclude_pad=True)
    if least:
        mean = ops.maximum(mean, np.float32(least))
    contrast = ops.divide(ops.abs(ops.subtract(grey, mean)), mean)
    if work:
        contrast = ops.add(contrast, _slow_zero(grey, work))
    pooled = ops.max_pool(contrast, [CELL, CELL], [1, 1], [0, 0], [0, 0], [CELL, CELL]).output(0)
    cells = ops.squeeze(pooled, np.array([0, 1]))  # (rows, columns)
    rows, columns = height // CELL, width // CELL
    tiles = ops.reduce_max(
        ops.reshape(cells, np.array([2, rows // 2, 2, columns // 2]), special_zero=False), np.array([1, 3])
    )
    tile_scores = ops.reshape(tiles, np.array([4]), special_zero=False)
    score = ops.reduce_max(tile_scores, np.array([0]))
    results = []
    for name, node in {"anomaly_map": cells, "tile_scores": tile_scores, "score": score}.items():
        node.output(0).get_tensor().set_names({name})
        results.append(ops.result(node, name=name))
    return ov.Model(results, [frame], "contrast")


def _slow_zero(grey: Any, work: int) -> Any:
    """A value below 1e-30 that no compiler can know beforehand."""
    size = 1024
    matrix = ops.constant(np.full((size, size), 1 / size, np.float32))
    value = ops.add(ops.reduce_mean(grey, np.array([0, 1, 2, 3]), keep_dims=False), matrix)
    for _ in range(work):
        value = ops.matmul(value, matrix, False, False)
    return ops.multiply(ops.reduce_mean(value, np.array([0, 1]), keep_dims=False), np.float32(1e-33))


def write_recipe(
    recipes_dir: Path,
    product: str = "demo",
    version: str = "v1",
    shape: tuple[int, int, int] = (64, 64, 1),
    limit: float = 0.3,
    work: int = 0,
    activate: bool = True,
    least: float = 0.0,
) -> Path:
    """A recipe folder that load_recipe accepts and whose golden scores repeat."""
    folder = recipes_dir / product / version
    (folder / "golden").mkdir(parents=True)
    ov.save_model(contrast_graph(shape, work, least), folder / "model.xml", compress_to_fp16=False)
    _write_golden(folder, shape)
    _write_table(folder, _table(product, shape, limit))
    if activate:
        activate_version(recipes_dir, product, version)
    return folder


def activate_version(recipes_dir: Path, product: str, version: str) -> None:
    """Swap the `active` link atomically."""
    new = recipes_dir / product / ".active"
    new.symlink_to(version)
    new.replace(recipes_dir / product / "active")


def _write_golden(folder: Path, shape: tuple[int, int, int]) -> None:
    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", settings)
    height, width, channels = shape
    scores = []
    for number, make in enumerate((good_frame, good_frame, bad_frame)):
        pixels = make(width, height, channels, seed=number)
        name = f"{number:03d}.png"
        cv2.imwrite(str(folder / "golden" / name), pixels)
        found = compiled.create_infer_request().infer([pixels[None]])
        tiles, score = found["tile_scores"], found["score"]
        scores.append({"file": name, "score": float(score), "tile_scores": [float(each) for each in tiles]})
    (folder / "golden" / "scores.json").write_text(json.dumps(scores))


def _table(product: str, shape: tuple[int, int, int], limit: float) -> dict[str, Any]:
    height, width, channels = shape
    return {
        "schema_version": 1,
        "product": product,
        "frame": {"width": width, "height": height, "pixel_format": "Mono8" if channels == 1 else "BGR8"},
        "region": {"roi": [0, 0, width, height]},
        "tiles": {
            "rows": 2,
            "columns": 2,
            "height": height // 2,
            "width": width // 2,
            "overlap": 0,
            "scale": 1.0,
            "cell_px": float(CELL),
        },
        "model": {
            "kind": "contrast",
            "backbone": "none",
            "backbone_hash": "",
            "layers": [],
            "parameters": {},
        },
        "runtime": {"device": "CPU", "precision": "f32", "openvino": ov.__version__},
        "limits": {
            "score": limit,
            "wanted_false_reject_rate": 0.01,
            "estimated_false_reject_rate": 0.01,
            "proven_false_reject_rate": 0.1,
            "confidence": 0.95,
            "good_parts": 30,
            "folds": "none",
            "method": "by hand",
        },
        "golden": {"frames": 3, "tolerance": 0.001},
    }


def _write_table(folder: Path, table: dict[str, Any]) -> None:
    files = ["model.xml", "model.bin", "golden/scores.json"]
    files += [f"golden/{path.name}" for path in sorted((folder / "golden").glob("*.png"))]
    table["files"] = {name: file_hash(folder / name) for name in files}
    table["content_hash"] = content_hash(table)
    (folder / "recipe.toml").write_text(tomli_w.dumps(table), encoding="utf-8")


def rewrite_recipe(folder: Path, **changes: Any) -> None:
    """Change values of recipe.toml and hash it again: for recipes that are wrong, not altered."""
    import tomllib

    table = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    _write_table(folder, table)
