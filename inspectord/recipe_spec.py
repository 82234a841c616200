"""What recipe.toml may say. Every number is bounded: a recipe must not be able to ask for absurd memory."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from inspectord.frame import MOST_PIXELS

MOST_TILES = 10_000
MOST_GOLDEN = 1000
LONGEST_SIDE = 65_536  # line-scan cameras give long frames
FILE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}(/[A-Za-z0-9_.-]{1,100}){0,4}")

Text = Annotated[str, Field(max_length=500)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]


class Part(BaseModel):
    """A misspelt key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FrameSpec(Part):
    """The raw frame that the graph takes: uint8 of shape (1, height, width, channels)."""

    width: Side
    height: Side
    pixel_format: Literal["Mono8", "BGR8"]
    letterbox: bool = False  # fitted on images of mixed sizes, scaled and padded

    @model_validator(mode="after")
    def _bounded(self) -> FrameSpec:
        if self.width * self.height > MOST_PIXELS:
            raise ValueError(f"{self.width}x{self.height} is over {MOST_PIXELS // 1_000_000} megapixels")
        return self

    @property
    def channels(self) -> int:
        return 1 if self.pixel_format == "Mono8" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class RegionSpec(Part):
    """Where the score looks: the rectangle roi, less the ignored pixels."""

    roi: tuple[int, int, int, int]  # x, y, width, height in frame pixels
    ignored_fraction: float = Field(0.0, ge=0, le=1)


class TileSpec(Part):
    """How the region is cut; the anomaly map has cells of cell_px frame pixels."""

    rows: int = Field(ge=1, le=MOST_TILES)
    columns: int = Field(ge=1, le=MOST_TILES)
    height: Side  # of one tile, in scaled pixels
    width: Side
    overlap: int = Field(ge=0, le=LONGEST_SIDE)
    scale: float = Field(gt=0, le=64)  # scaled pixels per frame pixel
    cell_px: float = Field(gt=0, le=LONGEST_SIDE)  # frame pixels per cell of the anomaly map

    @model_validator(mode="after")
    def _bounded(self) -> TileSpec:
        if self.count > MOST_TILES:
            raise ValueError(f"{self.rows} x {self.columns} are more than {MOST_TILES} tiles")
        return self

    @property
    def count(self) -> int:
        return self.rows * self.columns


class ModelSpec(Part):
    kind: Text
    backbone: Text
    backbone_hash: Text
    layers: tuple[Text, ...] = Field(max_length=100)
    parameters: dict[Text, bool | int | float | Text] = Field(max_length=100)


class RuntimeSpec(Part):
    """The device and precision that the limits were calibrated with."""

    device: Text
    precision: Literal["f32", "bf16", "f16", "int8"]  # int8: of the network, by quantisation in its graph
    rest: Literal["f32", "bf16", "f16"] | None = None  # with int8: of all that stays in floating point
    openvino: Text

    @model_validator(mode="after")
    def _rest_with_int8(self) -> RuntimeSpec:
        if (self.rest is None) == (self.precision == "int8"):
            raise ValueError("runtime.rest goes with precision int8, and only with it")
        return self

    @property
    def hint(self) -> str:
        """OpenVINO's precision: 8 bits are written in the graph, so it decides the rest."""
        return self.rest or self.precision

    @property
    def words(self) -> str:
        return self.precision + (f", the rest in {self.rest}" if self.rest else "")


class Limits(Part):
    """score: reject above it. The rates are of good parts; see calibrate.limits for how they are found."""

    score: FiniteFloat  # an infinite limit would pass everything
    wanted_false_reject_rate: float = Field(gt=0, lt=1)
    estimated_false_reject_rate: float = Field(ge=0, le=1)
    proven_false_reject_rate: float = Field(ge=0, le=1)  # upper bound at `confidence`
    confidence: float = Field(gt=0, lt=1)
    good_parts: int = Field(ge=2, le=1_000_000_000)
    folds: Text  # how the held-out scores were made
    method: Text
    # Nine in ten of the held-out good parts score at most this. Not in recipes of before it was kept.
    nine_in_ten: FiniteFloat | None = None


class GoldenSpec(Part):
    frames: int = Field(ge=1, le=MOST_GOLDEN)
    tolerance: float = Field(gt=0, lt=1)  # relative
    # Row by row from 0: tiles in which a good frame passes though a square is painted over. Not in recipes of
    # before it was asked.
    blind_tiles: tuple[Annotated[int, Field(ge=0, lt=MOST_TILES)], ...] = Field((), max_length=MOST_TILES)


class RecipeToml(Part):
    schema_version: int
    product: str = Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")
    content_hash: Digest
    frame: FrameSpec
    region: RegionSpec
    tiles: TileSpec
    model: ModelSpec
    runtime: RuntimeSpec
    limits: Limits
    golden: GoldenSpec
    files: dict[str, Digest] = Field(max_length=2 * MOST_GOLDEN)  # path inside the recipe -> sha256

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not FILE_NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
                raise ValueError(f"{name[:60]!r} is no path inside a recipe; do not use this one")
        return files

    @model_validator(mode="after")
    def _region_in_frame(self) -> RecipeToml:
        x, y, width, height = self.region.roi
        if min(x, y) < 0 or min(width, height) < 1:
            raise ValueError(f"region.roi {self.region.roi} is no rectangle")
        if x + width > self.frame.width or y + height > self.frame.height:
            raise ValueError(f"region.roi {self.region.roi} leaves the frame")
        return self


class GoldenRow(Part):
    """Of golden/scores.json: a frame, and what the compiled graph said of it on the day of fitting."""

    file: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")  # its name in golden/
    score: FiniteFloat
    tile_scores: tuple[FiniteFloat, ...] = Field(max_length=MOST_TILES)
