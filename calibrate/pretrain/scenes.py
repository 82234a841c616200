"""Made-up scenes of industry: families of textures, prints and parts, and good frames of each design."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calibrate.pretrain import scenes_parts as parts
from calibrate.pretrain import scenes_prints as prints
from calibrate.pretrain import scenes_textures as textures
from calibrate.pretrain.canvas import Canvas

_TRAINING: tuple[Callable[[Canvas], None], ...] = (
    textures.cast,
    textures.brushed,
    textures.cloth,
    textures.perforated,
    textures.leather,
    textures.tiles,
    textures.granules,
    textures.ribbed,
    prints.text,
    prints.inks,
    prints.board,
    parts.moulded,
    parts.stamped,
    parts.screws,
    parts.pills,
    parts.cables,
    parts.wires,
)
_KEPT: tuple[Callable[[Canvas], None], ...] = (textures.knitted, textures.wood, prints.solar, parts.turning)
_DRAW = {draw.__name__: draw for draw in _TRAINING + _KEPT}
FAMILIES: tuple[str, ...] = tuple(draw.__name__ for draw in _TRAINING)
HELD_OUT: tuple[str, ...] = tuple(draw.__name__ for draw in _KEPT)

_CPU_PIXELS = 8 * 128 * 128  # pixels drawn at a time: about ten fields of them stay in a core's cache
_GPU_PIXELS = 1 << 25  # 128 MiB a field, about twenty alive at once


def render(
    family: str,
    seeds: Tensor,
    instances: int,
    size: int,
    device: str | torch.device = "cpu",
    free: float | None = None,
) -> Tensor:
    """Good frames, float32 (g, instances, 3, size, size), 0..255, of g parts; seeds is int64 (g,).

    A seed is one product design of the family: its colours, periods, shapes, glyphs. Its instances vary as
    good parts do. Every number is a hash of (family, seed, draw) or of (family, seed, instance, draw): a
    picture depends neither on its batch nor on torch's generators. free is the share of designs of parts that
    lie at any angle; None: the family's own. Raises KeyError for an unknown family.
    """
    draw, salt = _DRAW[family], sum(ord(letter) * 257**k for k, letter in enumerate(family[:6]))
    seeds = seeds.to(device)
    pixels = _CPU_PIXELS if seeds.device.type == "cpu" else _GPU_PIXELS
    step = max(1, pixels // (instances * size * size))
    return torch.cat([_drawn(draw, Canvas(part, salt, instances, size, free)) for part in seeds.split(step)])


def _drawn(draw: Callable[[Canvas], None], canvas: Canvas) -> Tensor:
    draw(canvas)
    return canvas.exposed()
