"""In the daemon: a log of every inference that ended, with the code in its frame, and faults of the device.

Points: "start", "wait", "result" of an inference, "compile" of a model. PLACE is the camera's name, taken
from the examining thread's own; "daemon" holds for every camera.
"""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np

from injected import orders, parts

LOG = orders.Log("daemon", "inference")


def wrap(module: Any) -> None:
    """Wrap Inspector and compile_model of inspectord.inspect."""
    inspector = module.Inspector
    inspector.fault_code = inspector.fault_wait = None
    inspector.start = _start(inspector.start)
    inspector.wait = _wait(inspector.wait)
    inspector.cancel = _cancel(inspector.cancel)
    inspector.result = _result(inspector.result)
    real_compile = module.compile_model

    def compile_model(model: Any, device: str, *rest: Any, **more: Any) -> Any:
        _fail(_order("compile"), device)
        return real_compile(model, device, *rest, **more)

    module.compile_model = compile_model


def _camera() -> str:
    return threading.current_thread().name.removeprefix("inspect-")


def _inspects() -> bool:
    """False in the threads that load a model and score its golden frames."""
    return threading.current_thread().name.startswith("inspect-")


def _order(point: str) -> dict[str, Any] | None:
    return orders.take(_camera(), point) or orders.take("daemon", point)


def _fail(order: dict[str, Any] | None, device: str = "CPU") -> None:
    if order and order["action"] == "raise" and order.get("device", device) == device:
        raise RuntimeError(order.get("text", "fault: [GPU] CL_OUT_OF_RESOURCES, device lost"))


def _start(real: Any) -> Any:
    def start(self: Any, slot: int) -> None:
        self.fault_code = parts.read(self._slots[slot].data)
        self.fault_wait = None
        self.fault_began_ns = time.monotonic_ns()
        _fail(_order("start"), self.device)
        real(self, slot)

    return start


def _wait(real: Any) -> Any:
    def wait(self: Any, timeout_s: float) -> bool:
        if not _inspects():
            return bool(real(self, timeout_s))
        order = self.fault_wait = self.fault_wait or _order("wait")
        _fail(order, self.device)
        if order and order["action"] == "hang":  # for ever, as far as the product can tell
            time.sleep(timeout_s)
            return False
        if order and order["action"] == "late":
            end_ns = self.fault_began_ns + order["ms"] * 1e6
            if time.monotonic_ns() < end_ns:
                time.sleep(min(timeout_s, max(0.0, (end_ns - time.monotonic_ns()) / 1e9)))
            if time.monotonic_ns() < end_ns:
                return False
        return bool(real(self, timeout_s))

    return wait


def _cancel(real: Any) -> Any:
    def cancel(self: Any) -> None:
        if self.fault_wait and self.fault_wait.get("cancellable"):
            self.fault_wait = None  # a device that is slow and yet obeys
        real(self)

    return cancel


def _result(real: Any) -> Any:
    def result(self: Any) -> Any:
        found, camera = real(self), _camera()
        if not _inspects():
            return found
        order = _order("result")
        _fail(order, self.device)
        found = _spoilt(found, order)
        LOG.write(
            event="inferred",
            camera=camera,
            code=self.fault_code,
            score=json_score(found),
            limit=self.recipe.spec.limits.score,
            recipe_hash=self.recipe.hash,
            faulted=order["action"] if order else None,
        )
        return found

    return result


def json_score(result: Any) -> float | None:
    """The score, or None where any of the results is not finite: such a frame must never pass."""
    values = (result.tile_scores, result.anomaly_map)
    finite = math.isfinite(result.score) and all(np.isfinite(each).all() for each in values)
    json.dumps(result.score)
    return float(result.score) if finite else None


def _spoilt(result: Any, order: dict[str, Any] | None) -> Any:
    match order and order["action"]:
        case "score":  # "nan", "inf", "-inf": in the score alone
            return replace(result, score=float(order["value"]))
        case "tiles":  # in one tile, while the score looks fine
            tiles = result.tile_scores.copy()
            tiles.flat[0] = float(order["value"])
            return replace(result, tile_scores=tiles, score=0.0)
        case "map":
            cells = result.anomaly_map.copy()
            cells.flat[0] = float(order["value"])
            return replace(result, anomaly_map=cells, score=0.0)
        case "shape":  # an output of another shape than the recipe's
            return replace(result, anomaly_map=np.zeros(order["shape"], np.float32))
    return result
