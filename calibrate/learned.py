"""What a recipe keeps of its fit, so that `calibrate extend` can add good frames to it.

It lies in the recipe's folder learned/, which no daemon reads and no box beside the line needs. Its digest is
among the recipe's parameters, so that what is extended is what was fitted. Every model kind adds files of its
own; these are common to all:

    about.json    the fit's options and geometry
    digests.npy   uint8 (frames, 32), SHA-256 of each good frame that ever taught it
    ignored.npy   uint8, the frame's ignored pixels, eight to a byte
    paths.json    where the frames were, and of which run, outside the digest: names never change a recipe
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calibrate.images import GoodFrame, frame_digest
from calibrate.kinds import kept_in
from calibrate.options import TRAINED, FitOptions
from calibrate.tiles import Axis, Geometry
from inspectord.errors import FitError
from inspectord.recipe import MARKED, Recipe, file_hash
from inspectord.sources.files import read_image

if TYPE_CHECKING:
    from calibrate.plan import Plan

LEARNED = "learned"  # the folder, and the recipe's parameter that holds its digest
ABOUT, DIGESTS, IGNORED = "about.json", "digests.npy", "ignored.npy"
PATHS = "paths.json"
# Of places and of this box: they are asked for again, or read from the recipe itself.
LEFT_OUT = {"product", "recipes_dir", "folders", "backbone", "weights", "ignore_png", "ignore_polygons"}
LEFT_OUT |= {"skip_bad", "activate", "threads", "memory_mb", "max_false_reject_rate", "jobs", "on"}
LEFT_OUT |= {"extendable"}  # asked for or not, what is kept is the same


@dataclass(frozen=True)
class Earlier:
    """The good frames that taught a recipe, and their statistics in `folder`."""

    folder: Path
    frames: tuple[GoodFrame, ...]
    absent: tuple[int, ...]  # of these, the frames whose images are gone: they teach and are not measured
    golden: tuple[Path, ...]  # the recipe's good golden frames
    parameters: Mapping[str, Any]  # the recipe's, of its kind

    @property
    def absent_frames(self) -> list[GoodFrame]:
        return [self.frames[index] for index in self.absent]


# --- written by a fit ---


def keep(plan: Plan, scratch: Path) -> str:
    """Write the common files beside those of the kind, below scratch; the digest of all."""
    folder, frames = kept_in(scratch), plan.taught
    np.save(folder / DIGESTS, np.array([list(bytes.fromhex(frame.digest)) for frame in frames], np.uint8))
    np.save(folder / IGNORED, np.packbits(plan.region.ignored))
    _write_json(folder / ABOUT, {"options": _portable(plan.options), "geometry": asdict(plan.geometry)})
    places = [[str(frame.path.absolute()), str(Path(frame.run).absolute())] for frame in frames]
    _write_json(folder / PATHS, places)
    return digest(folder)


def digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files, without paths.json."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name != PATHS:
            found.update(f"{path.name} {file_hash(path) if path.is_file() else 'no file'}\n".encode())
    return found.hexdigest()


def _portable(options: FitOptions) -> dict[str, Any]:
    values = {name: value for name, value in asdict(options).items() if name not in LEFT_OUT}
    return {name: value for name, value in values.items() if not isinstance(value, Path)}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# --- read by extend ---


def open_learned(recipe: Recipe) -> Earlier:
    """What a recipe keeps of its fit. Raises FitError where that is nothing, or is not what was written."""
    folder, expected = recipe.path / LEARNED, recipe.spec.model.parameters.get(LEARNED)
    again = "fit again from all good frames, with `calibrate fit --extendable`"
    if recipe.spec.model.kind in TRAINED:
        raise FitError(
            f"recipe {recipe.id} is of {recipe.spec.model.kind}, which can't be extended; fit again from all "
            "good frames"
        )
    if expected is None:
        raise FitError(f"recipe {recipe.id} keeps nothing that it could be extended by; {again}")
    if not folder.is_dir():
        raise FitError(f"recipe {recipe.id} lacks its folder {LEARNED}/; copy it from its fit, or {again}")
    if digest(folder) != expected:
        raise FitError(f"{folder} was changed after fitting; restore it, or {again}")
    digests = _array(folder / DIGESTS)
    places = _places(folder / PATHS, len(digests))
    frames = [
        GoodFrame(path, bytes(row).hex(), run) for (path, run), row in zip(places, digests, strict=True)
    ]
    golden = tuple(frame.path for frame in recipe.golden() if frame.path.name != MARKED)
    return Earlier(folder, tuple(frames), tuple(range(len(frames))), golden, recipe.spec.model.parameters)


def taught_digests(recipe: Recipe) -> tuple[set[str], bool]:
    """images.frame_digest of good frames that taught the recipe, and whether these are all of them, as they
    were given.

    Without what extend needs, or where it is damaged, as `extend` will say, they are those of the golden
    frames, in the recipe's frame size.
    """
    try:
        return {bytes(row).hex() for row in _array(recipe.path / LEARNED / DIGESTS)}, True
    except (OSError, EOFError, ValueError, TypeError, MemoryError):  # missing, empty, cut, of another shape
        golden = [frame.path for frame in recipe.golden() if frame.path.name != MARKED]
        return {frame_digest(read_image(path)) for path in golden}, False


def stored_options(earlier: Earlier) -> dict[str, Any]:
    """The fit's options as FitOptions takes them, less those of places and of the box."""
    known = {field.name for field in fields(FitOptions)}
    stored = _read_json(earlier.folder / ABOUT)["options"]
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name in known
    }


def stored_geometry(earlier: Earlier) -> Geometry:
    stored = _read_json(earlier.folder / ABOUT)["geometry"]
    axes = {name: stored[name] | {"offsets": tuple(stored[name]["offsets"])} for name in ("rows", "columns")}
    return Geometry(
        roi=tuple(stored["roi"]),
        scale=stored["scale"],
        cell=stored["cell"],
        rows=Axis(**axes["rows"]),
        columns=Axis(**axes["columns"]),
    )


def stored_mask(earlier: Earlier, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The ignored pixels, (height, width)."""
    bits = np.unpackbits(_array(earlier.folder / IGNORED), count=height * width)
    return bits.reshape(height, width).astype(np.bool_)


def _array(path: Path) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    return found


def _places(path: Path, count: int) -> list[tuple[Path, str]]:
    """Where the frames were, and their runs; a file that is missing or no such list only means that none is
    found again.
    """
    try:
        found = [(Path(where), str(run)) for where, run in _read_json(path)]
    except (OSError, ValueError, TypeError):
        found = []
    return found if len(found) == count else [(Path(f"good frame {number}"), "") for number in range(count)]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
