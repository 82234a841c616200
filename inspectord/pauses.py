"""Garbage is collected between parts, not while one waits for its verdict; every pause is measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 5.0
AT_LATEST_S = 30.0  # a line that never rests gets its collection all the same: memory must not grow


class Pauses:
    """The process's collector, taken over: start() after warm-up, poll() often, close() gives it back."""

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        self.longest_ms = 0.0  # since start()
        self._is_idle = is_idle
        self._began_s = self._collected_s = 0.0

    def start(self) -> None:
        """What lives now lives for ever: the collector need not look at it again."""
        gc.collect()
        gc.freeze()
        gc.disable()
        gc.callbacks.append(self._measure)
        self._collected_s = time.monotonic()

    def poll(self) -> None:
        """Collect where it is due and no part waits, or is overdue."""
        age_s = time.monotonic() - self._collected_s
        if age_s >= AT_LATEST_S or (age_s >= EVERY_S and self._is_idle()):
            gc.collect()
            self._collected_s = time.monotonic()

    def close(self) -> None:
        if self._measure in gc.callbacks:
            gc.callbacks.remove(self._measure)
            gc.enable()
            gc.unfreeze()

    def _measure(self, phase: str, _: dict[str, Any]) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
        else:
            self.longest_ms = max(self.longest_ms, (time.perf_counter() - self._began_s) * 1000)
