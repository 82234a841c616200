"""Synthetic defects: good images in, struck images and honest masks of what changed out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from calibrate.pretrain import added, altered, unseen
from calibrate.pretrain.fields import Dice
from inspectord.errors import InspectordError

VISIBLE = 4.0  # grey levels, mean over the channels
CLEAR = 6.0  # grey levels; to this the image's own grain adds
FEWEST = 0.0007  # share of the image's pixels that must have changed clearly, or the defect is tried again
TRIES = 4
# At once on a processor: what is being worked on stays in its cache, and of large images takes little memory.
GROUP, GROUP_PX = 8, 8 * 128**2

# A grey image comes as one channel, so that it stays grey and costs a third.
_STRIKES: dict[str, Callable[[Tensor, Tensor, Dice], Tensor]] = {
    "paste": added.paste,
    "texture": added.texture,
    "flat": added.flat,
    "scratch": added.scratch,
    "spot": added.spot,
    "stain": added.stain,
    "chip": altered.chip,
    "warp": altered.warp,
    "blur": altered.blur,
    "rough": altered.rough,
    "shift": altered.shift,
    "crack": unseen.crack,
    "pits": unseen.pits,
    "dent": unseen.dent,
    "dropout": unseen.dropout,
    "fibre": unseen.fibre,
}
HELD_OUT: tuple[str, ...] = ("crack", "pits", "dent", "dropout", "fibre")
FAMILIES: tuple[str, ...] = tuple(name for name in _STRIKES if name not in HELD_OUT)


class DefectError(InspectordError):
    """Images or families that no defect can be drawn for."""

    exit_code = 65


def strike(
    images: Tensor, sources: Tensor, generator: torch.Generator, families: Sequence[str] = FAMILIES
) -> tuple[Tensor, Tensor]:
    """One defect on each image: struck images (n, 3, h, w) from 0 to 255, mask (n, 1, h, w) bool.

    images and sources are float32 (n, 3, h, w) from 0 to 255; content may be pasted from a source. The
    mask is where the image changed visibly (gaps of up to four pixels closed). An image on which nothing
    would show after some tries comes back as it was with an empty mask. Equal seed, images and
    sources give equal results on the same device. Raises DefectError on a wrong shape or an unknown family.
    """
    _check(images, sources, families)
    plain = _is_grey(images)
    struck = images.clone()
    mask = torch.zeros_like(images[:, :1], dtype=torch.bool)
    left = torch.arange(len(images), device=images.device)
    for _ in range(TRIES):
        missed = []
        for family, is_plain, rows in _shared_out(left, plain, generator, families, _at_once(images)):
            dice = Dice(generator, len(rows), images.device)
            channels = slice(0, 1 if is_plain else 3)
            changed, mask[rows], shows = _tried(family, images[rows, channels], sources[rows, channels], dice)
            struck[rows] = changed.expand(-1, 3, -1, -1)
            missed.append(rows[~shows])
        left = torch.cat(missed) if missed else left
        if not len(left):
            break
    return struck, mask


def _at_once(images: Tensor) -> int:
    pixels = math.prod(images.shape[2:])
    return min(GROUP, max(1, GROUP_PX // pixels)) if images.device.type == "cpu" else max(1, len(images))


def _shared_out(
    rows: Tensor, plain: Tensor, generator: torch.Generator, families: Sequence[str], at_once: int
) -> Iterator[tuple[str, bool, Tensor]]:
    """A random family for each of the rows: family, whether grey, rows, so many at most."""
    pick = Dice(generator, len(rows), rows.device).uniform(0, len(families), 1)[:, 0].long()
    kind = pick * 2 + plain[rows]
    for index in range(len(families) * 2):
        mine = rows[kind == index]
        for group in mine.split(at_once):
            if len(group):
                yield families[index // 2], bool(index % 2), group


def _tried(family: str, images: Tensor, sources: Tensor, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
    """Struck images, masks, and whether anything shows, (n,) bool; where nothing does, as they were.

    images and sources have three channels or one.
    """
    changed = _STRIKES[family](images, sources, dice).clamp_(0, 255)
    change = (changed - images).abs_().mean(1, keepdim=True)
    clear = (change > CLEAR + 0.3 * _grain(images)).flatten(1).sum(1)
    shows = clear > FEWEST * change[0].numel()
    kept = shows.view(-1, 1, 1, 1)
    return torch.where(kept, changed, images), closed(change > VISIBLE) & kept, shows


def _is_grey(images: Tensor) -> Tensor:
    """Where the three channels are equal, (n,) bool."""
    return (images[:, 1:] == images[:, :1]).flatten(1).all(1)


def _grain(images: Tensor) -> Tensor:
    """Mean difference between neighbouring pixels of the middle channel, (n, 1, 1, 1)."""
    middle = images[:, images.shape[1] // 2, None]
    return (middle[..., 1:] - middle[..., :-1]).abs().mean((2, 3), keepdim=True)


def closed(mask: Tensor) -> Tensor:
    """The mask with gaps of up to four pixels filled (a morphological closing by 5 x 5)."""
    return ~_grown(~_grown(mask))


def _grown(mask: Tensor) -> Tensor:
    """Every set pixel becomes 5 x 5; by shifts, which on a processor are far faster than pooling booleans."""
    for dimension in (2, 3):
        size = mask.shape[dimension]
        pads = (0, 0, 2, 2) if dimension == 2 else (2, 2, 0, 0)
        padded = functional.pad(mask, pads)
        mask = padded.narrow(dimension, 0, size).clone()
        for step in range(1, 5):
            mask |= padded.narrow(dimension, step, size)
    return mask


def _check(images: Tensor, sources: Tensor, families: Sequence[str]) -> None:
    unknown = [name for name in families if name not in _STRIKES]
    if unknown or not families:
        raise DefectError(f"no defect family {unknown or 'named'}; choose from {', '.join(_STRIKES)}")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape != sources.shape:
        raise DefectError(
            f"images {tuple(images.shape)} and sources {tuple(sources.shape)} must both be (n, 3, h, w); "
            "repeat a grey image's channel three times"
        )
