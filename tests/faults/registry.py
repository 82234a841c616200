"""Faults by name."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.faults.line import Line, Setup
from tests.faults.oracle import Promises

Strike: TypeAlias = Callable[[Line, random.Random], float | None]
MODULES = ("camera", "producer", "inference", "daemon", "clock", "storage", "network")


@dataclass(frozen=True)
class Fault:
    """strike(line, rng) does the harm once; it returns the seconds to recover, or None."""

    name: str
    strike: Strike
    what: str  # in words
    setup: Setup = field(default_factory=Setup)
    promises: Promises = field(default_factory=Promises)
    recovers_s: float | None = None
    strikes_a_run: int = 20  # on one daemon; a fault that uses the daemon up has fewer
    pairs: bool = True  # False: makes no sense together with another
    needs: Callable[[], str | None] = lambda: None  # why it can't be tried on this machine


FAULTS: dict[str, Fault] = {}


def fault(
    setup: Setup | None = None,
    promises: Promises | None = None,
    *,
    recovers_s: float | None = None,
    strikes_a_run: int = 20,
    pairs: bool = True,
    needs: Callable[[], str | None] = lambda: None,
    name: str | None = None,
) -> Callable[[Strike], Strike]:
    """Enter a strike function under its own name."""

    def enter(strike: Strike) -> Strike:
        key = name or strike.__name__
        what = (strike.__doc__ or "").strip().splitlines()[0].rstrip(".")
        FAULTS[key] = Fault(
            key,
            strike,
            what,
            setup or Setup(),
            promises or Promises(),
            recovers_s,
            strikes_a_run,
            pairs,
            needs,
        )
        return strike

    return enter


def load_all() -> dict[str, Fault]:
    """Every fault of every module that is there."""
    for module in MODULES:
        importlib.import_module(f"tests.faults.{module}")
    return FAULTS
