"""The known-good frames of a fit: found, decoded once, checked, and put in an order no file name decides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrate.progress import Progress
from inspectord.errors import FitError, FrameError
from inspectord.frame import Pixels, letterbox
from inspectord.sources.files import list_images, read_image

# Ten parts without an exceedance prove "at most 1 good part in 4 is rejected" (95 % confidence);
# what fewer say is worth no limit at all.
MINIMUM_GOOD_FRAMES = 10
PROVE = " (they prove no more than 'at most 1 good part in 4 is rejected'; 299 prove 1 in 100)"
NAMED = 5  # files named in an error; the others are counted
GOOD_NAMES = {"good", "ok", "normal"}  # what labelled data sets call the folder next to the defects


@dataclass(frozen=True, slots=True)
class GoodFrame:
    """One distinct known-good image; run is the folder it came from, as the operator named it."""

    path: Path
    digest: str  # SHA-256 of shape and decoded pixels
    run: str


@dataclass(frozen=True, slots=True)
class GoodFrames:
    """Distinct, checked frames in the order of their digests; pixels are read when asked for."""

    frames: tuple[GoodFrame, ...]
    shape: tuple[int, int, int]  # height, width, channels of read(i)
    letterboxed: bool
    duplicates: int  # exact copies, kept once
    skipped: tuple[Path, ...]  # unreadable or blank, left out by --skip-bad

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Pixels:
        """Pixels of frame `index`: uint8 of shape `self.shape`, decoded afresh."""
        pixels = read_image(self.frames[index].path)
        if not self.letterboxed:
            return pixels
        height, width, _ = self.shape
        return letterbox(pixels, width, height)

    @property
    def digest(self) -> str:
        """SHA-256 over all frames' digests: names the set of good parts, whatever the files are called."""
        return digest_of(self.frames)


def digest_of(frames: Iterable[GoodFrame]) -> str:
    """SHA-256 over the frames' digests, in whatever order they come."""
    return hashlib.sha256("".join(sorted(frame.digest for frame in frames)).encode()).hexdigest()


def collect_good_frames(
    folders: Sequence[Path],
    letterbox: tuple[int, int] | None,
    skip_bad: bool,
    progress: Progress,
    fewest: int = MINIMUM_GOOD_FRAMES,
) -> GoodFrames:
    """Find, decode and check every image of the folders; letterbox is (width, height). At least `fewest`
    different ones are needed.

    Raises FrameError for unreadable, blank or differently sized images, FitError for too few of them.
    """
    found = [(path, str(folder)) for folder in folders for path in _images_of(folder, progress)]
    for place, count in Counter(path.parent for path, _ in found).items():
        progress.note(f"{_count(count, 'image')} from {place}")
    checked, shapes, bad = _check_all(found, progress)
    if bad and not skip_bad:
        raise FrameError(f"{_named(bad)}; remove or replace them, or leave them out with --skip-bad")
    distinct = _distinct(checked)
    _say_what_was_left_out(len(checked) - len(distinct), bad, progress)
    shape = _common_shape(shapes, letterbox)
    if len(distinct) < fewest:
        raise FitError(
            f"{_count(len(distinct), 'different good image')} in {', '.join(map(str, folders))}, at least "
            f"{fewest} {'is' if fewest == 1 else 'are'} needed"
            f"{PROVE if fewest == MINIMUM_GOOD_FRAMES else ''}; grab more with `calibrate capture`"
        )
    return GoodFrames(
        frames=tuple(distinct),
        shape=shape,
        letterboxed=letterbox is not None,
        duplicates=len(checked) - len(distinct),
        skipped=tuple(path for path, _ in bad),
    )


def frame_digest(pixels: Pixels) -> str:
    """SHA-256 of an image's shape and pixels: the same for the same picture under any name or format."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _images_of(folder: Path, progress: Progress) -> list[Path]:
    """The images of a folder, of a captured run (run.toml, frames/) or of a data set (train/good)."""
    if (folder / "run.toml").is_file():
        folder = folder / "frames"
    elif (folder / "train" / "good").is_dir():
        progress.note(f"{folder} is a data set: its good images for fitting are {folder / 'train' / 'good'}")
        folder = folder / "train" / "good"
    _refuse_labelled(folder)
    return list_images(folder)


def _refuse_labelled(folder: Path) -> None:
    """A folder with good/ next to defects, at any depth, must not teach the defects as good."""
    for good in sorted(
        item for item in folder.rglob("*") if item.name.lower() in GOOD_NAMES and item.is_dir()
    ):
        others = sorted(item.name for item in good.parent.iterdir() if item.is_dir() and item != good)
        if others:
            raise FitError(
                f"{good.parent} holds {good.name} next to {', '.join(others[:NAMED])}; "
                f"only known-good images may teach: give {good}"
            )


def _check_all(
    found: Sequence[tuple[Path, str]], progress: Progress
) -> tuple[list[GoodFrame], dict[tuple[int, ...], list[Path]], list[tuple[Path, str]]]:
    """Decode each image once: the usable ones, the files of each shape, and (file, why not) of the others."""
    checked: list[GoodFrame] = []
    shapes: dict[tuple[int, ...], list[Path]] = {}
    bad: list[tuple[Path, str]] = []
    for path, run in progress.track(found, "checking images"):
        try:
            pixels = read_image(path)
        except FrameError as error:
            bad.append((path, str(error)))
            continue
        if pixels.min() == pixels.max():
            bad.append((path, f"{path} is blank: every pixel is {pixels.min()}"))
            continue
        shapes.setdefault(pixels.shape, []).append(path)
        checked.append(GoodFrame(path, frame_digest(pixels), run))
    return checked, shapes, bad


def _distinct(checked: Iterable[GoodFrame]) -> list[GoodFrame]:
    """One frame per digest, ordered by digest; of copies the one whose path sorts first."""
    kept: dict[str, GoodFrame] = {}
    for frame in sorted(checked, key=lambda frame: (frame.digest, str(frame.path))):
        kept.setdefault(frame.digest, frame)
    return list(kept.values())


def _common_shape(
    shapes: dict[tuple[int, ...], list[Path]], letterbox: tuple[int, int] | None
) -> tuple[int, int, int]:
    channels = Counter({shape[2]: 0 for shape in shapes})
    for shape, paths in shapes.items():
        channels[shape[2]] += len(paths)
    if len(channels) > 1:
        raise FrameError(f"grey and colour images are mixed: {_sizes(shapes)}; fit from one kind only")
    if len(shapes) > 1 and letterbox is None:
        raise FrameError(
            f"the images differ in size: {_sizes(shapes)}; take them all with the camera as it will run, or "
            f"scale and pad them to one size with --letterbox {_largest(shapes)}"
        )
    if not shapes:
        return 0, 0, 0
    height, width, count = next(iter(shapes))
    return (height, width, count) if letterbox is None else (letterbox[1], letterbox[0], count)


def _sizes(shapes: dict[tuple[int, ...], list[Path]]) -> str:
    ordered = sorted(shapes.items(), key=lambda item: (-len(item[1]), item[0]))
    texts = [
        f"{len(paths)} of {shape[1]}x{shape[0]}x{shape[2]} (first: {min(paths)})" for shape, paths in ordered
    ]
    more = f" and {len(texts) - NAMED} more sizes" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more


def _largest(shapes: Iterable[tuple[int, ...]]) -> str:
    return f"{max(shape[1] for shape in shapes)}x{max(shape[0] for shape in shapes)}"


def _named(bad: Sequence[tuple[Path, str]]) -> str:
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{_count(len(bad), 'bad image')}: " + "; ".join(why for _, why in bad[:NAMED]) + more


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _say_what_was_left_out(copies: int, bad: Sequence[tuple[Path, str]], progress: Progress) -> None:
    if copies:
        progress.note(f"exact copies of other images: {copies}; each counts once, as one good part")
    if bad:
        progress.note(f"left out by --skip-bad: {_named(bad)}")
