"""Random numbers by counting: each is a hash of (part, instance, draw) and depends on no other.

A batch of parts is drawn by tensor operations on any device; a part looks the same alone or among a thousand.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64  # draws hashed at a time: one small tensor operation instead of one for every number
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as the signed word that torch holds


def mix64(x: Tensor) -> Tensor:
    """A bijection of int64 that looks random.

    Steele et al. 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
    """
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def mix32(x: Tensor) -> Tensor:
    """A bijection of int32 that looks random, for every pixel. Wellons' "lowbias32"."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -2073254261
    return x ^ ((x >> 16) & 0xFFFF)


def unit32(x: Tensor) -> Tensor:
    """int32 hashes as float32 in [0, 1)."""
    return ((x >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def lattice(column: Tensor, row: Tensor, key: Tensor) -> Tensor:
    """The int32 hash of a lattice cell; column, row and key are int32."""
    return mix32((column * 73856093 + row * 19349663) ^ key)


class CountedDice:
    """The numbers of g parts with n instances each; every call draws anew, in the order of the calls.

    seeds is int64 (g,). What is drawn for the part has shape (g, 1, 1, 1), for each instance (g, n, 1, 1).
    """

    def __init__(self, seeds: Tensor, salt: int, instances: int) -> None:
        part = mix64(mix64(seeds.to(torch.int64)) ^ mix64(torch.tensor(salt, device=seeds.device)))
        self.counted = torch.arange(1, _BLOCK + 1, device=seeds.device)
        numbers = torch.arange(1, instances + 1, device=seeds.device)
        self._roots = (part[:, None], mix64(part[:, None] ^ mix64(numbers * _GOLDEN)))
        self._blocks: list[Tensor | None] = [None, None]
        self._drawn = [0, 0]

    def _word(self, which: int) -> Tensor:
        """The next hash of the parts (0) or of the instances (1), int64 (g, 1 or n, 1, 1)."""
        block, place = divmod(self._drawn[which], _BLOCK)
        self._drawn[which] += 1
        held = self._blocks[which]
        if place == 0 or held is None:
            step = self.counted + block * _BLOCK
            held = self._blocks[which] = mix64(self._roots[which][..., None] + step * _GOLDEN)
        return held[:, :, place, None, None]

    def _unit(self, which: int) -> Tensor:
        return ((self._word(which) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24

    def part(self, low: float, high: float) -> Tensor:
        """Uniform in [low, high) for the part."""
        return low + (high - low) * self._unit(0)

    def log(self, low: float, high: float) -> Tensor:
        """Log-uniform in [low, high) for the part: periods and sizes."""
        return low * (high / low) ** self._unit(0)

    def each(self, low: float, high: float) -> Tensor:
        """Uniform in [low, high) for each instance."""
        return low + (high - low) * self._unit(1)

    def odds(self, chance: float) -> Tensor:
        """1.0 with this chance for the part, else 0.0."""
        return (self._unit(0) < chance).to(torch.float32)

    def count(self, low: int, high: int) -> Tensor:
        """A whole number in low..high (both included) for the part, as float32."""
        return torch.floor(self.part(low, high + 1))

    def part_key(self) -> Tensor:
        """An int32 key for fields that all instances of a part share."""
        return (self._word(0) >> 32).to(torch.int32)

    def each_key(self) -> Tensor:
        """An int32 key for fields that differ from instance to instance."""
        return (self._word(1) >> 32).to(torch.int32)
