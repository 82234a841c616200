"""What a fit is asked for, and what it will cost: said before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MODELS = ("padim", "patchcore")


@dataclass(frozen=True)
class FitOptions:
    """Everything that decides a recipe, besides the frames."""

    product: str
    recipes_dir: Path
    folders: tuple[Path, ...]
    model: Literal["padim", "patchcore"] = "padim"
    backbone: str = "bundled"
    weights: Path | None = None
    layers: tuple[str, ...] | None = None
    dimensions: int | None = None  # None: for padim 100, the paper's choice for ResNet-18; else all
    reduction: Literal["random", "semi-orthogonal"] = "random"
    seed: int = 0
    augment: int = 0  # rotated and shifted copies of every frame (the paper's modified PaDiM)
    letterbox: tuple[int, int] | None = None  # width, height
    resize: int | None = None  # shorter side in pixels
    tile: int | None = None
    overlap: int = 0
    grid: tuple[int, int] | None = None  # rows, columns
    roi: tuple[int, int, int, int] | None = None
    ignore_png: Path | None = None
    ignore_polygons: tuple[tuple[tuple[int, int], ...], ...] = ()
    epsilon: float = 0.01  # on the covariances' diagonals (the paper's)
    coreset: str | None = None  # patchcore: "10%" of the good patches, or a number; see candidates.Sizes
    position_weight: float = 0.0  # patchcore: what a patch's place counts (0: nothing, the paper's)
    absolute: bool = False  # score distances as they are (the papers'), not by levels.Levels
    smoothing_px: float = 4.0  # Gaussian sigma on the map, in scaled pixels (the paper's)
    max_false_reject_rate: float = 0.001
    folds: str = "loo"  # "loo", "run", or a number
    device: str = "CPU"
    precision: Literal["f32", "bf16", "f16"] = "f32"
    threads: int = 0  # 0: all cores
    skip_bad: bool = False
    activate: bool = True
    memory_mb: int = 1500


@dataclass(frozen=True)
class Estimate:
    """What a fit will take; shown before it starts."""

    frames: int
    positions: int
    dimensions: int
    frame_ms: float
    recipe_mb: float
    disk_mb: float
    memory_mb: float
    seconds: float
    cell_px: float  # side of one map cell in frame pixels
    about: str = ""  # what else the model kind has to say

    def lines(self) -> list[str]:
        """Plain words for the terminal."""
        return [
            f"{self.frames} good frames; a map of {self.positions} positions, one every {self.cell_px:.3g} "
            f"pixels of the frame, {self.dimensions} features each",
            *([self.about] if self.about else []),
            f"about {_duration(self.seconds)} ({self.frame_ms:.0f} ms a frame for features), "
            f"up to {self.memory_mb:.0f} MB of memory, {self.disk_mb:.0f} MB of temporary disk; "
            f"the recipe takes {self.recipe_mb:.0f} MB",
        ]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
