"""What a fault needs of its line, and the settings of the daemon that follow from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import genicam

VIKY = Path(os.path.dirname(genicam.__file__)) / "viky.cti"
SERIALS = ("0", "1", "2")  # of its cameras red, green, blue
LIMIT = 0.3  # of the recipe: good parts score below 0.1, bad ones above 0.8


@dataclass(frozen=True)
class Setup:
    """What a fault needs of its line. Two faults can share a line where merged() finds no contradiction."""

    kind: Literal["any", "scripted", "genicam"] = "any"
    cameras: int = 1
    rate_hz: float = 50.0
    deadline_ms: float = 400.0
    ring_slots: int = 8
    triggered: bool = False
    silent_s: float = 1.0  # of a genicam camera
    settings: dict[str, Any] = field(default_factory=dict)  # over the daemon's, table by table
    environment: dict[str, str] = field(default_factory=dict)  # of the daemon
    examine: dict[str, float] = field(default_factory=dict)  # constants of inspectord.examine
    bug: str | None = None
    wrapper: tuple[str, ...] = ()  # words in front of the daemon's command
    curve: bool = False  # False: the daemon takes anybody, security.mode = "plain"
    listens_on: str = "127.0.0.1"

    def merged(self, other: Setup) -> Setup | None:
        """One line for both, or None."""
        changed: dict[str, Any] = {}
        for name, plain in vars(Setup()).items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine in (plain, theirs):
                changed[name] = theirs
            elif theirs == plain:
                changed[name] = mine
            elif isinstance(mine, dict) and all(mine[key] == theirs[key] for key in mine.keys() & theirs):
                changed[name] = mine | theirs
            else:
                return None
        return replace(self, **changed)

    @property
    def names(self) -> list[str]:
        return [f"cam{number + 1}" for number in range(self.cameras)]

    def camera(self, number: int) -> dict[str, Any]:
        """A camera's entry in the daemon's settings."""
        source: dict[str, Any] = {"kind": "line", "seed": number, "rate_hz": self.rate_hz}
        if self.kind == "genicam":
            source = {"kind": "genicam", "cti": str(VIKY), "serial": SERIALS[number]}
            source |= {"features": {"AcquisitionFrameRate": self.rate_hz}, "silent_s": self.silent_s}
        return {
            "name": self.names[number],
            "recipe": "demo",
            "source": source,
            "deadline_ms": self.deadline_ms,
            "ring_slots": self.ring_slots,
        }

    def injected(self) -> dict[str, Any]:
        """line.json: what the injected code must know."""
        keys = SERIALS if self.kind == "genicam" else range(self.cameras)
        cameras = {
            name: {"key": key, "triggered": self.triggered}
            for name, key in zip(self.names, keys, strict=False)
        }
        return {"cameras": cameras, "examine": self.examine, "bug": self.bug}
