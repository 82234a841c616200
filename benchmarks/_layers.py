"""Where the time of one inference goes, by OpenVINO's own counters."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import openvino as ov

from benchmarks._common import table

ROUNDS, WARM_UP = 30, 10
NAMED = 12  # layers shown one by one


def layers(model: ov.Model, hint: str, threads: int, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Every layer that took time: its milliseconds (median over ROUNDS), kind and kernel; slowest first."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": True,
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for round_ in range(WARM_UP + ROUNDS):
        request.infer([pixels])
        for layer in request.profiling_info if round_ >= WARM_UP else ():
            if layer.status == layer.Status.EXECUTED:
                name = (layer.node_name, layer.node_type, layer.exec_type)
                times[name].append(layer.real_time.total_seconds() * 1e3)
    found = [
        {"ms": float(np.median(each)), "layer": name, "kind": kind, "kernel": kernel}
        for (name, kind, kernel), each in times.items()
    ]
    return sorted(found, key=lambda layer: -layer["ms"])


def print_layers(title: str, found: list[dict[str, Any]]) -> None:
    """The sum of each kind of layer, then the slowest ones."""
    total = sum(layer["ms"] for layer in found)
    kinds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for layer in found:
        kinds[layer["kind"], layer["kernel"]].append(layer["ms"])
    rows = sorted(((kind, kernel, len(ms), sum(ms)) for (kind, kernel), ms in kinds.items()), key=_slowest)
    print(f"{title}: {total:.2f} ms in {len(found)} layers, by OpenVINO's counters")
    table(("layers", "kernel", "number", "ms", "share"), [(*row, row[3] / total) for row in rows[:NAMED]])
    table(("slowest layer", "kernel", "ms"), [(x["layer"], x["kernel"], x["ms"]) for x in found[:NAMED]])


def _slowest(row: tuple[str, str, int, float]) -> float:
    return -row[3]
