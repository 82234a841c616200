"""Fuzz all targets, each in a process of its own, and print what came of it.

`python -m tests.fuzz.run --inputs 1000000 --seed 1`; exit code 1 where anything crashed, hung or took more
memory than it may. The inputs that did are kept in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.targets import targets

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one target's process left behind."""

    name: str
    inputs: int
    crashes: dict[str, int]  # what and where -> how often
    seconds: float
    slowest_s: float
    peak_mb: int

    @property
    def row(self) -> tuple[str, ...]:
        crashes = str(sum(self.crashes.values()))
        slowest = f"{self.slowest_s * 1000:.0f}"
        return self.name, f"{self.inputs:,}", crashes, f"{self.seconds:.0f}", slowest, str(self.peak_mb)


HEADINGS = ("target", "inputs", "crashes", "seconds", "slowest ms", "peak MB")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=1_000_000, help="over all targets; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, default=ROOT / ".fuzz", help="default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    print(_line(HEADINGS))
    for name, inputs in _shares(options.inputs, options.target).items():
        outcomes.append(_run(name, inputs, options.seed, options.out))
        print(_line(outcomes[-1].row), flush=True)
    for outcome in outcomes:
        for what, times in outcome.crashes.items():
            print(f"{outcome.name}: {what} ({times} times); inputs in {options.out}")
    print(f"{sum(outcome.inputs for outcome in outcomes):,} inputs")
    return 1 if any(outcome.crashes for outcome in outcomes) else 0


def _shares(inputs: int, wanted: list[str] | None) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        shares = {name: target.share for name, target in targets(Path(folder)).items()}
    chosen = {name: share for name, share in shares.items() if not wanted or name in wanted}
    return {name: round(inputs * share / sum(chosen.values())) for name, share in chosen.items()}


def _run(name: str, inputs: int, seed: int, out: Path) -> Outcome:
    result = out / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.worker", name, "--inputs", str(inputs), "--seed", str(seed)]
    began_s = time.monotonic()
    with (out / f"{name}.log").open("wb") as log_file:
        process = subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, stdout=log_file, stderr=log_file)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began_s
    found: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
    crashes = dict(found.get("crashes", {}))
    code = os.waitstatus_to_exitcode(status)
    if code != 0 or found.get("inputs", 0) < inputs:
        crashes[f"ended early with {code} (a hang, a native crash, memory; see {name}.log)"] = 1
    return Outcome(
        name, found.get("inputs", 0), crashes, seconds, found.get("slowest_s", 0.0), used.ru_maxrss // 1024
    )


def _line(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:<10}" + "".join(f"{cell:>12}" for cell in cells[1:])


if __name__ == "__main__":
    raise SystemExit(main())
