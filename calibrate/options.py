"""What a fit is asked for, and what it will cost: said before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Model = Literal[
    "usual",  # patchcore, or padim where good frames are too alike for it
    "patchcore",
    "padim",
    "patchcore-seg",
    "padim-seg",
    "efficientad-s",
    "efficientad-m",
    "efficientad-lite",
]
EFFICIENTAD: tuple[Model, ...] = ("efficientad-s", "efficientad-m", "efficientad-lite")
# What a kind becomes by --adapt.
ADAPTED: dict[Model, Model] = {"patchcore": "patchcore-seg", "padim": "padim-seg"}
PLAIN = {adapted: plain for plain, adapted in ADAPTED.items()}
ADAPT_FEWEST = 80  # good frames for these: what does not know a quarter of them knows 60
# Kinds that train a network: once, so nothing can be added to it.
TRAINED = (*EFFICIENTAD, *ADAPTED.values())
MODELS = (*ADAPTED, *ADAPTED.values(), *EFFICIENTAD)


@dataclass(frozen=True)
class FitOptions:
    """Everything that decides a recipe, besides the frames."""

    product: str
    recipes_dir: Path
    folders: tuple[Path, ...]
    model: Model = "usual"
    backbone: str = "bundled"
    weights: Path | None = None
    layers: tuple[str, ...] | None = None
    dimensions: int | None = None  # None: for padim see usual_dimensions; else all
    reduction: Literal["random", "semi-orthogonal"] = "random"
    seed: int = 0
    augment: int = 0  # rotated and shifted copies of every frame (the paper's modified PaDiM)
    letterbox: tuple[int, int] | None = None  # width, height
    resize: int | None = None  # shorter side in pixels
    tile: int | None = None
    overlap: int = 0
    grid: tuple[int, int] | None = None  # rows, columns
    per_tile: bool = False  # a model of its own for each tile position, see ensemble.check
    top_tiles: int = 1  # the frame's score is the mean of so many of the highest tile scores
    normalise: Literal["joined", "tile"] = "joined"  # the whole map, or each tile by its own good scores
    roi: tuple[int, int, int, int] | None = None
    ignore_png: Path | None = None
    ignore_polygons: tuple[tuple[tuple[int, int], ...], ...] = ()
    epsilon: float = 0.01  # on the covariances' diagonals (the paper's)
    coreset: str | None = None  # patchcore: "10%" of the good patches, or a number; see candidates.Sizes
    position_weight: float = 0.0  # patchcore: what a patch's place counts (0: nothing, the paper's)
    reweight: int = 0  # patchcore, absolute: neighbours of the paper's eq. 7; 0: the map's peak is the score
    adapt: Literal["auto", "off"] | float = "off"  # minutes to become ADAPTED in, see calibrate.adapt
    steps: int | None = None  # of training; None: efficientad the paper's 70,000, others as minutes allow
    minutes: float | None = None  # of training, instead of steps; efficientad-lite: 4, ...-seg: 5
    train_device: Literal["cpu", "cuda"] = "cpu"  # efficientad
    surroundings: bool | None = None  # features less what is foretold; None: see plan
    relight: bool | None = None  # frames brought to the good frames' light, features damped; None: see plan
    absolute: bool = False  # score distances as they are (the papers'), not by levels.Levels
    smoothing_px: float | None = None  # Gaussian sigma on the map, in scaled pixels; None: see plan.Plan
    max_false_reject_rate: float = 0.001
    folds: str = "loo"  # "loo", "run", or a number
    device: str = "CPU"
    precision: Literal["f32", "bf16", "f16", "int8"] = "f32"
    max_int8_loss: float = 0.02  # int8: of AUROC and of rank agreement with f32; see eight_bits.Loss
    threads: int = 0  # 0: all cores
    skip_bad: bool = False
    activate: bool = True
    extendable: bool | None = None  # keep what `calibrate extend` needs; None: up to plan.KEEP_MB
    memory_mb: int = 1500
    jobs: int = 1  # positions or tiles that are fitted at the same time, each by a process with one thread
    on: str | None = None  # dask://host:port: fitted by that cluster instead


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
    kept_mb: float = 0.0  # of the recipe's folder, for `calibrate extend` alone
    about: str = ""  # what else the model kind has to say

    def lines(self) -> list[str]:
        """Plain words for the terminal."""
        return [
            f"{self.frames} good frames; a map of {self.positions} positions, one every {self.cell_px:.3g} "
            f"pixels of the frame" + (f", {self.dimensions} features each" if self.dimensions > 1 else ""),
            *([self.about] if self.about else []),
            f"about {duration(self.seconds)} ({self.frame_ms:.0f} ms a frame for features), "
            f"up to {self.memory_mb:.0f} MB of memory, {self.disk_mb:.0f} MB of temporary disk; "
            f"the recipe takes {self.recipe_mb:.0f} MB"
            + (f", and {self.kept_mb:.0f} MB that only `calibrate extend` needs" if self.kept_mb else ""),
        ]


def duration(seconds: float) -> str:
    """In seconds, of two minutes or more in minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
