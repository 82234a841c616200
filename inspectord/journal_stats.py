"""What the journal says in sum: verdicts, reasons, recipes and latencies of each camera."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspectord.journal_read import SUPERSEDED, batches, opened
from inspectord.messages import Verdict

QUERY = f"""
SELECT id, camera, verdict, reason, decided_at, json_extract(message, '$.recipe'),
       json_extract(message, '$.latency_ms'), {SUPERSEDED}
FROM verdicts WHERE id > ? ORDER BY id"""
STEP = 1.01  # latencies are counted in steps of 1 %: exact ones of millions of rows would fill the memory


@dataclass
class CameraStats:
    """Published verdicts of one camera; superseded ones are only counted."""

    rows: int = 0
    superseded: int = 0
    first: str = ""
    last: str = ""
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    recipes: Counter[str] = field(default_factory=Counter)
    _steps: Counter[int] = field(default_factory=Counter)

    def add(self, verdict: str, reason: str, decided_at: str, recipe: str, latency_ms: float) -> None:
        self.rows += 1
        self.first, self.last = self.first or decided_at, decided_at
        self.verdicts[verdict] += 1
        self.reasons[reason] += 1
        self.recipes[str(recipe)] += 1
        self._steps[math.ceil(math.log(max(latency_ms or 0.0, 1e-3), STEP))] += 1

    def latency_ms(self, share: float) -> float | None:
        """The latency that this share of the verdicts did not exceed, up to 1 % too high."""
        wanted, seen = share * self.rows, 0
        for step, count in sorted(self._steps.items()):
            seen += count
            if seen >= wanted:
                return float(f"{STEP**step:.3g}")
        return None

    def table(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "superseded": self.superseded,
            "first": self.first,
            "last": self.last,
            "verdicts": dict(sorted(self.verdicts.items())),
            "reasons": dict(self.reasons.most_common()),
            "recipes": dict(self.recipes.most_common()),
            "reject_rate": self._rate(Verdict.REJECT),
            "not_inspected_rate": self._rate(Verdict.NOT_INSPECTED),
            "latency_p50_ms": self.latency_ms(0.5),
            "latency_p99_ms": self.latency_ms(0.99),
        }

    def _rate(self, verdict: Verdict) -> float | None:
        return round(self.verdicts[verdict] / self.rows, 6) if self.rows else None


def stats(path: Path) -> dict[str, dict[str, Any]]:
    """A table for each camera, by name. Raises JournalError where the journal can't be read."""
    found: dict[str, CameraStats] = {}
    with opened(path) as database:
        for rows in batches(database, QUERY):
            for _, camera, verdict, reason, decided_at, recipe, latency_ms, superseded in rows:
                camera_stats = found.setdefault(str(camera), CameraStats())
                if superseded:
                    camera_stats.superseded += 1
                else:
                    camera_stats.add(verdict, reason, decided_at, recipe, latency_ms)
    return {name: camera_stats.table() for name, camera_stats in sorted(found.items())}


def describe(tables: dict[str, dict[str, Any]]) -> list[str]:
    """The same for people: one block a camera."""
    lines: list[str] = []
    for camera, table in tables.items():
        lines.append(f"camera {camera}: {table['rows']} verdicts, {table['first']} to {table['last']}")
        for kind in ("verdicts", "reasons", "recipes"):
            for name, count in table[kind].items():
                lines.append(f"  {kind[:-1]:8} {name:40} {count:10} {count / table['rows']:8.2%}")
        lines.append(f"  latency  p50 {table['latency_p50_ms']} ms, p99 {table['latency_p99_ms']} ms")
        if table["superseded"]:
            lines.append(f"  {table['superseded']} more rows are superseded: decided, but not published so")
    return lines or ["no verdicts"]
