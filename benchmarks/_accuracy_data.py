"""Data sets for benchmarks.accuracy: found, named, frame sizes dealt with by a rule, masks found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from calibrate.evaluation import GOOD
from inspectord.errors import SourceError
from inspectord.recipe import file_hash
from inspectord.sources.files import list_images
from inspectord.sources.image_size import declared_size

Size = tuple[int, int]  # width, height in pixels

SIDE = 256  # of a tile, and the shorter one of what is long and cut into tiles
BOX = 512  # side of a letterboxed frame at most: what the bundled networks scale frames to
LARGE = 2048  # pixels on the longer side
TILES = ("--tile", str(SIDE), "--overlap", "32")
RULE = (
    "Size rule, from train/good alone. One size: under 2048 px on the longer side as fit scales it; from "
    "there, --resize 1024 and tiles of 256 that overlap by 32; more than twice as long as wide and over "
    "256 px long, the shorter side at most 256 and such tiles. Several sizes: --letterbox 512x512, of small "
    "frames twice the longer side of the median, or, where the median frame is one that gets tiles, a "
    "letterbox of the median size and then its rule."
)


@dataclass(frozen=True)
class DataSet:
    """A folder in the common layout; options are what the size rule gives for it."""

    name: str
    folder: Path
    options: tuple[str, ...]
    why: str
    train: int  # images each
    good: int
    defective: int
    digest: str  # over names and contents of all files that matter


def find_data_sets(folders: Iterable[Path]) -> list[DataSet]:
    """Each folder with train/good, or every such folder in it, as in MVTec AD's.

    Raises SourceError where there is none, or where test/good is missing.
    """
    found = dict.fromkeys(path for folder in folders for path in _with_layout(folder.resolve()))
    names = Counter(path.name for path in found)
    return [_opened(path, path.name if names[path.name] == 1 else str(path)) for path in found]


def _with_layout(folder: Path) -> list[Path]:
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in (folder, *inner) if (path / "train" / GOOD).is_dir()]
    if not found:
        raise SourceError(
            f"{folder} has no train/good, nor has a folder in it; give one in the common layout"
        )
    return found[:1] if found[0] == folder else found


def _opened(folder: Path, name: str) -> DataSet:
    if not (folder / "test" / GOOD).is_dir():
        raise SourceError(
            f"{folder} has no test/good, so nothing can be measured; add good images to test with"
        )
    good = list_images(folder / "train" / GOOD)
    options, why = size_rule(Counter(size for path in good if (size := declared_size(path.read_bytes()))))
    return DataSet(
        name=name,
        folder=folder,
        options=options,
        why=why,
        train=len(good),
        good=len(list_images(folder / "test" / GOOD)),
        defective=sum(len(list_images(kind)) for kind in _defects(folder)),
        digest=_digest(folder),
    )


def size_rule(sizes: Mapping[Size, int]) -> tuple[tuple[str, ...], str]:
    """Fit options for frames of these sizes (each with its count), as RULE says, and the reason in words."""
    if not sizes:
        return (), "no image whose size can be read"
    if len(sizes) == 1:
        return _one_size(*next(iter(sizes)))
    frames = [size for size, count in sizes.items() for _ in range(count)]
    width, height = (round(median(size[axis] for size in frames)) for axis in (0, 1))
    options, why = _one_size(width, height)
    several = f"{len(sizes)} sizes around {width}x{height}"
    if "--tile" not in options:
        box = min(BOX, 2 * max(width, height))
        return ("--letterbox", f"{box}x{box}"), f"{several}: scaled and padded to {box}x{box}"
    return ("--letterbox", f"{width}x{height}", *options), f"{several}: scaled and padded to that; {why}"


def _one_size(width: int, height: int) -> tuple[tuple[str, ...], str]:
    longer, shorter, size = max(width, height), min(width, height), f"{width}x{height}"
    if longer > 2 * shorter and longer > SIDE:
        resize = ("--resize", str(SIDE)) if shorter > SIDE else ()
        return (*resize, *TILES), f"{size} is longer than 2:1: tiles"
    if longer >= LARGE:
        return ("--resize", str(4 * SIDE), *TILES), f"{size} is large: {4 * SIDE} on the shorter side, tiles"
    return (), f"{size}: as fit scales it"


def _defects(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in (folder / "test").iterdir()
        if path.is_dir() and path.name != GOOD and any(path.iterdir())
    )


def _digest(folder: Path) -> str:
    parts = [folder / "train" / GOOD, folder / "test", folder / "ground_truth"]
    files = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {file_hash(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folder_to_evaluate(data: DataSet, scratch: Path) -> Path:
    """The data set's folder, or links to it in scratch where masks have their image's own name.

    So they are called after VisA's split script; `calibrate evaluate` looks for MVTec AD's <name>_mask.png.
    """
    masks = dict(_masks(data.folder))
    if all(link == mask.name for (_, link), mask in masks.items()):
        return data.folder
    scratch.mkdir()
    (scratch / "test").symlink_to(data.folder / "test")
    for (kind, link), mask in masks.items():
        path = scratch / "ground_truth" / kind / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(mask)
    return scratch


def _masks(folder: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    """((kind, name that evaluate looks for), mask that is there) of each defective image with a mask."""
    for kind in _defects(folder):
        truth = folder / "ground_truth" / kind.name
        for image in list_images(kind):
            wanted = f"{image.stem}_mask.png"
            for mask in (truth / wanted, truth / f"{image.stem}.png"):
                if mask.is_file():
                    yield (kind.name, wanted), mask
                    break
