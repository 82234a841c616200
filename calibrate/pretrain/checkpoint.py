"""What a training needs to go on after a kill: whole or not at all, and for no other training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from inspectord.errors import FitError

Identity: TypeAlias = Mapping[str, int | float | str]  # by name, everything in which two trainings may differ
TOLD = 3  # differences named in an error


class Part(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def write(path: Path, step: int, identity: Identity, parts: Mapping[str, Part]) -> None:
    """The parts' states after so many steps; path's folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    states = {name: each.state_dict() for name, each in parts.items()}
    with part.open("wb") as file:  # torch's own writer calls a full disk an internal error
        torch.save({"step": step, "identity": dict(identity), "parts": states}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def restore(
    path: Path,
    identity: Identity,
    parts: Mapping[str, Part],
    device: torch.device,
    otherwise: str = "give another --out",
) -> int:
    """Give the parts their states back; the steps done, 0 where there is no checkpoint.

    Raises FitError where the file is damaged, or another training's; otherwise is what else one may do.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        others = _differences(state["identity"], identity)
        if not others:
            for name, part in parts.items():
                part.load_state_dict(state["parts"][name])
        step = int(state["step"])
    except Exception as error:  # torch raises many kinds; all mean the same to the user
        raise FitError(
            f"{path} is damaged or of another version ({type(error).__name__}); "
            f"remove it to begin anew, or {otherwise}"
        ) from error
    if others:
        told = ", ".join(others[:TOLD]) + (f" and {len(others) - TOLD} more" if len(others) > TOLD else "")
        raise FitError(f"{path} is another training's: {told}; go on as it began, or {otherwise}")
    return step


def _differences(then: Identity, now: Identity) -> list[str]:
    return [
        f"{name} {then.get(name, 'none')}, now {now.get(name, 'none')}"
        for name in {**now, **then}
        if then.get(name) != now.get(name)
    ]
