"""A recipe: one immutable folder with everything between a raw frame and a verdict, checked by hash."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from inspectord.errors import RecipeError
from inspectord.recipe_spec import FrameSpec, GoldenRow, Limits, RecipeToml
from inspectord.toml_file import read_toml

if TYPE_CHECKING:
    from inspectord.signature import TrustedKey

__all__ = [
    "MARKED",
    "SCHEMA",
    "FrameSpec",
    "GoldenFrame",
    "Limits",
    "Recipe",
    "RecipeToml",
    "active_recipe",
    "blind_words",
    "content_hash",
    "file_hash",
    "load_recipe",
    "tile_words",
]

SCHEMA = 1
MARKED = "marked.png"  # the golden frame that no limit should let pass
NAMED = 6  # tiles named in a line
LARGEST_SCORES = 16 << 20  # bytes of golden/scores.json
_GOLDEN_TABLE = TypeAdapter(list[GoldenRow])

Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class GoldenFrame:
    """A frame and what the compiled graph said of it on the day of fitting."""

    path: Path
    score: float
    tile_scores: tuple[float, ...]


class Recipe(BaseModel):
    """A verified recipe on disk."""

    model_config = ConfigDict(frozen=True)

    path: Path
    spec: RecipeToml
    stamps: dict[str, Stamp]  # of each file, taken before it was hashed

    @property
    def id(self) -> str:
        """Product and version, for people."""
        return f"{self.spec.product}/{self.path.name}"

    @property
    def hash(self) -> str:
        return self.spec.content_hash

    @property
    def is_blind(self) -> bool:
        return bool(self.blindness)

    @property
    def blindness(self) -> str:
        """What passes though it is painted over, the marked golden frame or in tiles; empty where it sees.

        For people. Reads the golden scores; raises RecipeError as golden() does.
        """
        marked = [frame.score for frame in self.golden() if frame.path.name == MARKED]
        middle, tiles = any(score <= self.spec.limits.score for score in marked), self.spec.tiles
        return blind_words(middle, self.spec.golden.blind_tiles, (tiles.rows, tiles.columns))

    @property
    def model_path(self) -> Path:
        return self.path / "model.xml"

    def golden(self) -> list[GoldenFrame]:
        """The golden frames, all of them files of this recipe. Raises RecipeError where they are not."""
        rows = _golden_rows(self.path / "golden" / "scores.json")
        for row in rows:
            if f"golden/{row.file}" not in self.spec.files:
                raise RecipeError(
                    f"recipe {self.path}: golden frame {row.file!r} is no file of it; fit again"
                )
            if len(row.tile_scores) != self.spec.tiles.count:
                raise RecipeError(
                    f"recipe {self.path}: golden frame {row.file} has {len(row.tile_scores)} tile scores, "
                    f"the recipe {self.spec.tiles.count} tiles; fit again"
                )
        if len(rows) != self.spec.golden.frames:
            raise RecipeError(f"recipe {self.path} lacks golden frames; restore it or fit again")
        return [GoldenFrame(self.path / "golden" / row.file, row.score, row.tile_scores) for row in rows]

    def verified_again(self) -> Recipe:
        """This recipe, its files hashed again where any was touched since. Raises RecipeError."""
        touched = any(_stamp(self.path / name) != stamp for name, stamp in self.stamps.items())
        return self.model_copy(update={"stamps": _verified_files(self.path, self.spec)}) if touched else self

    def check_untouched(self) -> None:
        """Raises RecipeError where a file was touched since it was verified: what was read is unknown."""
        for name, stamp in self.stamps.items():
            if _stamp(self.path / name) != stamp:
                raise RecipeError(f"{self.path / name} was changed while it was read; restore it and reload")


def blind_words(middle: bool, tiles: tuple[int, ...], grid: tuple[int, int]) -> str:
    """What passes a recipe though a square is painted over; empty where nothing does.

    middle: in the marked golden frame. tiles: row by row from 0, in a grid of (rows, columns).
    """
    passes = "a good frame with a large square painted over passes"
    where = tile_words(tiles, grid)
    if middle:
        places = f", in the middle and in {where}" if tiles else ""
        return f"{passes}{places}, so the recipe would find no defects"
    return f"{passes} in {where}, so the recipe would find no defects there" if tiles else ""


def tile_words(tiles: tuple[int, ...], grid: tuple[int, int]) -> str:
    """As '1 of 6 tiles (row/column 2/3)', counted from 1."""
    rows, columns = grid
    places = ", ".join(f"{number // columns + 1}/{number % columns + 1}" for number in tiles[:NAMED])
    more = " and so on" if len(tiles) > NAMED else ""
    return f"{len(tiles)} of {rows * columns} tiles (row/column {places}{more})"


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(table: dict[str, Any]) -> str:
    """SHA-256 over recipe.toml's values (less content_hash itself), which hold the hash of every file."""
    rest = {key: value for key, value in table.items() if key != "content_hash"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_recipe(path: Path, trusted: TrustedKey | None = None) -> Recipe:
    """Read and verify one recipe folder; with a trusted key, its signature first.

    Raises RecipeError for a missing, newer, damaged, altered or untrusted recipe, naming the file at fault.
    """
    path = path.resolve()
    table = _read_table(path / "recipe.toml")
    version = table.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA:
        raise RecipeError(
            f"recipe {path} has schema {str(version)[:20]}, this inspectord reads up to {SCHEMA}; "
            "update inspectord on this box, or fit the recipe again here"
        )
    try:
        spec = RecipeToml(**table)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_in_words(error)}; restore it or fit again") from error
    if content_hash(table) != spec.content_hash:
        raise RecipeError(f"{path / 'recipe.toml'} was changed after fitting; restore it or fit again")
    if trusted is not None:
        trusted.check(path, spec.product, spec.content_hash)
    return Recipe(path=path, spec=spec, stamps=_verified_files(path, spec))


def active_recipe(recipes_dir: Path, product: str, trusted: TrustedKey | None = None) -> Recipe:
    """The recipe that `active` points to. Raises RecipeError with the next step."""
    link = recipes_dir / product / "active"
    if not link.is_symlink():
        raise RecipeError(
            f"no active recipe for {product!r} in {recipes_dir}; fit one with "
            f"`calibrate fit --product {product} FOLDER` or choose one with `calibrate activate {product}` "
            f"(`calibrate list` names its versions)"
        )
    recipe = load_recipe(link, trusted)
    if recipe.spec.product != product:
        raise RecipeError(
            f"{recipe.path} is a recipe of {recipe.spec.product!r}, not of {product!r}; move it there, and "
            f"choose another with `calibrate activate {product}`"
        )
    return recipe


def _read_table(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except PermissionError as error:
        raise RecipeError(f"{path} may not be read by this account; use one that may") from error
    except OSError as error:
        raise RecipeError(
            f"no recipe at {path.parent} ({path.name}: {error.strerror}); "
            "make one with `calibrate fit`, or list them with `calibrate list`"
        ) from error
    except ValueError as error:
        raise RecipeError(f"{path} is damaged ({error}); restore it or fit again") from error


def _in_words(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"[:500]


def _verified_files(path: Path, spec: RecipeToml) -> dict[str, Stamp]:
    for name in ("model.xml", "model.bin", "golden/scores.json"):
        if name not in spec.files:
            raise RecipeError(f"recipe {path} does not list {name}; restore it or fit again")
    stamps = {name: _verified(path, name, expected) for name, expected in spec.files.items()}
    with (path / "model.xml").open("rb") as file:
        # OpenVINO takes other formats under this name as well, and some of those refer to further files.
        if file.read(1) != b"<":
            raise RecipeError(f"{path / 'model.xml'} is no OpenVINO model; restore it or fit again")
    return stamps


def _verified(path: Path, name: str, expected: str) -> Stamp:
    file = (path / name).resolve()
    if not file.is_relative_to(path):
        raise RecipeError(f"recipe {path} names {name}, which lies outside it; do not use this recipe")
    if not file.is_file():
        raise RecipeError(f"recipe {path} lacks {name}; restore it or fit again")
    stamp = _stamp(file)
    if file_hash(file) != expected:
        raise RecipeError(f"{file} was changed after fitting; restore it or fit again")
    return stamp


def _stamp(path: Path) -> Stamp:
    """Which file this is, and when it last changed: only root can set ctime. All zero where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _golden_rows(path: Path) -> list[GoldenRow]:
    try:
        with path.open("rb") as file:
            return _GOLDEN_TABLE.validate_json(file.read(LARGEST_SCORES))
    except OSError as error:
        raise RecipeError(f"can't read {path}: {error.strerror}; restore the recipe or fit again") from error
    except ValidationError as error:
        raise RecipeError(f"{path} is damaged ({_in_words(error)}); restore it or fit again") from error
