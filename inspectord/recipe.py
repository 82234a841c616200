"""A recipe: one immutable folder with everything between a raw frame and a verdict, checked by hash."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from inspectord.errors import RecipeError

SCHEMA = 1
MARKED = "marked.png"  # the golden frame that no limit should let pass


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FrameSpec(_Part):
    """The raw frame that the graph takes: uint8 of shape (1, height, width, channels)."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    pixel_format: Literal["Mono8", "BGR8"]
    letterbox: bool = False  # fitted on images of mixed sizes, scaled and padded

    @property
    def channels(self) -> int:
        return 1 if self.pixel_format == "Mono8" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class RegionSpec(_Part):
    """Where the score looks: the rectangle roi, less the ignored pixels."""

    roi: tuple[int, int, int, int]  # x, y, width, height in frame pixels
    ignored_fraction: float = Field(0.0, ge=0, le=1)


class TileSpec(_Part):
    """How the region is cut; the anomaly map has cells of cell_px frame pixels."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    height: int = Field(ge=1)  # of one tile, in scaled pixels
    width: int = Field(ge=1)
    overlap: int = Field(ge=0)
    scale: float = Field(gt=0)  # scaled pixels per frame pixel
    cell_px: float = Field(gt=0)  # frame pixels per cell of the anomaly map


class ModelSpec(_Part):
    kind: str
    backbone: str
    backbone_hash: str
    layers: tuple[str, ...]
    parameters: dict[str, bool | int | float | str]


class RuntimeSpec(_Part):
    """The device and precision that the limits were calibrated with."""

    device: str
    precision: Literal["f32", "bf16", "f16"]
    openvino: str


class Limits(_Part):
    """score: reject above it. The rates are of good parts; see calibrate.limits for how they are found."""

    score: FiniteFloat  # an infinite limit would pass everything
    wanted_false_reject_rate: float = Field(gt=0, lt=1)
    estimated_false_reject_rate: float = Field(ge=0, le=1)
    proven_false_reject_rate: float = Field(ge=0, le=1)  # upper bound at `confidence`
    confidence: float = Field(gt=0, lt=1)
    good_parts: int = Field(ge=2)
    folds: str  # how the held-out scores were made
    method: str


class GoldenSpec(_Part):
    frames: int = Field(ge=1)
    tolerance: float = Field(gt=0, lt=1)  # relative


class RecipeToml(_Part):
    schema_version: int
    product: str
    content_hash: str
    frame: FrameSpec
    region: RegionSpec
    tiles: TileSpec
    model: ModelSpec
    runtime: RuntimeSpec
    limits: Limits
    golden: GoldenSpec
    files: dict[str, str]  # path inside the recipe -> sha256


class Recipe(BaseModel):
    """A verified recipe on disk."""

    model_config = ConfigDict(frozen=True)

    path: Path
    spec: RecipeToml

    @property
    def id(self) -> str:
        """Product and version, for people."""
        return f"{self.spec.product}/{self.path.name}"

    @property
    def hash(self) -> str:
        return self.spec.content_hash

    @property
    def is_blind(self) -> bool:
        """True where even the marked golden frame, a good one with a square painted over, passes."""
        marked = [frame.score for frame in self.golden() if frame.path.name == MARKED]
        return any(score <= self.spec.limits.score for score in marked)

    @property
    def model_path(self) -> Path:
        return self.path / "model.xml"

    def golden(self) -> list[GoldenFrame]:
        table = json.loads((self.path / "golden" / "scores.json").read_text(encoding="utf-8"))
        return [GoldenFrame(path=self.path / "golden" / item.pop("file"), **item) for item in table]


class GoldenFrame(_Part):
    """A frame and what the compiled graph said of it on the day of fitting."""

    path: Path
    score: float
    tile_scores: tuple[float, ...]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(table: dict[str, Any]) -> str:
    """SHA-256 over recipe.toml's values (less content_hash itself), which hold the hash of every file."""
    rest = {key: value for key, value in table.items() if key != "content_hash"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Read and verify one recipe folder.

    Raises RecipeError for a missing, newer, damaged or altered recipe, naming the file at fault.
    """
    path = path.resolve()
    table = _read_toml(path / "recipe.toml")
    version = table.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA:
        raise RecipeError(
            f"recipe {path} has schema {version}, this inspectord reads up to {SCHEMA}; "
            "update inspectord on this box, or fit the recipe again here"
        )
    try:
        spec = RecipeToml(**table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"recipe {path}: {where}: {first['msg']}; restore it or fit again") from error
    if content_hash(table) != spec.content_hash:
        raise RecipeError(f"{path / 'recipe.toml'} was changed after fitting; restore it or fit again")
    _verify_files(path, spec)
    return Recipe(path=path, spec=spec)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise RecipeError(f"{path} may not be read by this account; use one that may") from error
    except OSError as error:
        raise RecipeError(
            f"no recipe at {path.parent} ({path.name}: {error.strerror}); "
            "make one with `calibrate fit`, or list them with `calibrate list`"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is damaged ({error}); restore it or fit again") from error


def _verify_files(path: Path, spec: RecipeToml) -> None:
    for name in ("model.xml", "model.bin", "golden/scores.json"):
        if name not in spec.files:
            raise RecipeError(f"recipe {path} does not list {name}; restore it or fit again")
    for name, expected in spec.files.items():
        file = (path / name).resolve()
        if not file.is_relative_to(path):
            raise RecipeError(f"recipe {path} names {name}, which lies outside it; do not use this recipe")
        if not file.is_file():
            raise RecipeError(f"recipe {path} lacks {name}; restore it or fit again")
        if file_hash(file) != expected:
            raise RecipeError(f"{file} was changed after fitting; restore it or fit again")


def active_recipe(recipes_dir: Path, product: str) -> Recipe:
    """The recipe that `active` points to. Raises RecipeError with the next step."""
    link = recipes_dir / product / "active"
    if not link.is_symlink():
        raise RecipeError(
            f"no active recipe for {product!r} in {recipes_dir}; fit one with "
            f"`calibrate fit --product {product} FOLDER` or choose one with `calibrate activate {product}`"
        )
    return load_recipe(link)
