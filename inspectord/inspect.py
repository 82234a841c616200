"""From a frame in the ring to score and anomaly map: one compiled graph, one infer call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

from inspectord.errors import FrameError, ParityError, RecipeError
from inspectord.frame import Pixels
from inspectord.recipe import Recipe

Floats: TypeAlias = npt.NDArray[np.float32]


OUTPUTS = ("score", "tile_scores", "anomaly_map")
SCORE_LIMIT_S = 60.0  # for one frame outside the line, a first one that allocates included

left_behind: list[Inspector | None] = []  # hung models; they must outlive everything, even the interpreter


@dataclass(frozen=True, slots=True)
class Result:
    """What the graph says of one frame; the arrays are valid until the next start."""

    score: float
    tile_scores: Floats  # (tiles,)
    anomaly_map: Floats  # (rows, columns), grid resolution


class Inspector:
    """The recipe's graph, compiled once, with one infer request."""

    def __init__(
        self, recipe: Recipe, device: str | None = None, threads: int = 0, cache_dir: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.device = device or recipe.spec.runtime.device
        precision = recipe.spec.runtime.hint
        self._compiled = compile_model(recipe.model_path, self.device, precision, threads, cache_dir)
        self._request = self._compiled.create_infer_request()
        self._shapes = {name: tuple(self._compiled.output(name).shape) for name in OUTPUTS}
        self._slots: list[ov.Tensor] = []

    def bind(self, slots: Sequence[Pixels]) -> None:
        """Wrap the ring's slots, each uint8 of shape (1, height, width, channels), without copying."""
        self._slots = [ov.Tensor(slot, shared_memory=True) for slot in slots]

    def start(self, slot: int) -> None:
        """Begin on a bound slot; its pixels must stay until wait() has returned True."""
        self._request.set_input_tensor(self._slots[slot])
        self._request.start_async()

    def wait(self, timeout_s: float) -> bool:
        """True once the graph has finished; raises what the device raised."""
        return bool(self._request.wait_for(max(0, int(timeout_s * 1000))))

    def cancel(self) -> None:
        """Ask the device to stop early; wait() tells when it has, by raising."""
        self._request.cancel()

    def renew(self) -> None:
        """A fresh infer request from the same compiled graph, after one that raised or was cancelled."""
        self._request = self._compiled.create_infer_request()

    def result(self) -> Result:
        return Result(
            score=float(self._output("score").flat[0]),
            tile_scores=self._output("tile_scores"),
            anomaly_map=self._output("anomaly_map"),
        )

    def check(self, result: Result) -> Result:
        """The result, if it is whole. Raises FrameError where its shapes are not the graph's."""
        for name, found in (("tile_scores", result.tile_scores), ("anomaly_map", result.anomaly_map)):
            if found.shape != self._shapes[name]:
                raise FrameError(
                    f"{self.device} gave {name} of shape {found.shape}, not {self._shapes[name]}"
                )
        return result

    def score(self, pixels: Pixels) -> Result:
        """Score one frame of the recipe's shape (height, width, channels); blocks."""
        if pixels.shape != self.recipe.spec.frame.shape or pixels.dtype != np.uint8:
            raise FrameError(
                f"the frame is {pixels.dtype} {pixels.shape}, recipe {self.recipe.id} needs "
                f"uint8 {self.recipe.spec.frame.shape}; use frames of that size or fit again"
            )
        frame = np.ascontiguousarray(pixels)[None]
        self._request.set_input_tensor(ov.Tensor(frame, shared_memory=frame.flags.writeable))
        self._request.start_async()
        if not self._request.wait_for(round(SCORE_LIMIT_S * 1000)):
            left_behind.append(self)
            raise RuntimeError(f"{self.device} gave no answer within {SCORE_LIMIT_S:.0f} s")
        return self.result()

    def _output(self, name: str) -> Floats:
        data: Floats = self._request.get_tensor(name).data
        return data


def compile_model(
    model: ov.Model | Path, device: str, precision: str, threads: int = 0, cache_dir: Path | None = None
) -> ov.CompiledModel:
    """Compile for latency with precision and threads pinned; fit and daemon both come through here."""
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if device.startswith("CPU"):
        # Two daemons that pin by default stack on the same cores.
        config |= {"ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": threads}
    if cache_dir is not None:
        config["CACHE_DIR"] = str(cache_dir)
    core = _core()
    try:
        return core.compile_model(
            core.read_model(model) if isinstance(model, Path) else model, device, config
        )
    except RuntimeError as error:
        raise RecipeError(
            f"the model does not compile on {device}: {str(error).strip().splitlines()[-1]}; "
            f"devices here: {', '.join(core.available_devices)}"
        ) from error


@functools.cache
def _core() -> ov.Core:
    """The process's only Core, never destroyed.

    Its CPU plugin gives the thread that makes it an alternate signal stack, and unmaps that stack when it is
    destroyed, in whatever thread: with a Core per model, the first SIGTERM after a reload was a SIGSEGV.
    """
    return ov.Core()


def check_golden(inspector: Inspector) -> float:
    """Score the recipe's golden frames again; the largest relative difference.

    Raises ParityError where it exceeds the recipe's tolerance: what was calibrated would not be what runs.
    """
    from inspectord.sources.files import read_image

    recipe, worst = inspector.recipe, 0.0
    for frame in recipe.golden():
        result = inspector.score(read_image(frame.path))
        found = np.array([result.score, *result.tile_scores], np.float64)
        stored = np.array([frame.score, *frame.tile_scores], np.float64)
        if found.shape != stored.shape:
            raise ParityError(f"recipe {recipe.id}: its model has other tiles than recipe.toml; fit again")
        # Of tiles that score next to nothing only rounding is left, which may differ and decides nothing.
        scale = np.maximum(np.abs(stored), 0.01 * recipe.spec.limits.score)
        difference = float(np.max(np.abs(found - stored) / scale))
        if not difference <= recipe.spec.golden.tolerance:
            raise ParityError(
                f"recipe {recipe.id} scores golden frame {frame.path.name} as {result.score:.6g} on "
                f"{inspector.device}, {frame.score:.6g} when it was fitted; its limit does not hold here: "
                f"fit on this box, or set inference.device to {recipe.spec.runtime.device!r}"
            )
        worst = max(worst, difference)
    return worst
