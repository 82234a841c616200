"""Networks of random numbers for benchmarks.accuracy: what features are worth that no training made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from safetensors.numpy import save_file

from calibrate.backbones.resnet import LAYOUTS, state_shapes
from calibrate.backbones.weights import random_state
from inspectord.errors import SettingsError

RANDOM = "random"  # behind --weights, in the place of a file


def random_network(words: Sequence[str]) -> str | None:
    """The network that `--weights random` among fit options asks for; None where they don't ask for one.

    Raises SettingsError for a network that can't be had so.
    """
    if _last(words, "--weights") != RANDOM:
        return None
    name = _last(words, "--backbone")
    if name not in LAYOUTS:
        raise SettingsError(f"--weights {RANDOM} goes with --backbone {' or '.join(LAYOUTS)}; name one")
    return name


def with_random_weights(words: Sequence[str], seed: int, folder: Path) -> list[str]:
    """Fit options with a file, made in folder from the seed, where they ask for random weights.

    He initialisation (He et al. 2015), batch norms that change nothing.
    """
    name = random_network(words)
    if name is None:
        return list(words)
    path = folder / f"{name}_{seed}.safetensors"
    save_file(random_state(state_shapes(name), seed), path)
    return [*words, "--weights", str(path)]  # of two, the last counts


def _last(words: Sequence[str], flag: str) -> str | None:
    """The flag's value, the last where it is given twice, from FLAG VALUE or FLAG=VALUE."""
    found = None
    for word, after in pairwise([*words, ""]):
        if word == flag:
            found = after
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found
