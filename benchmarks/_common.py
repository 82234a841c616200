"""What the benchmarks share: the machine in words, tables and reports, measured commands."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from inspectord import __version__
from inspectord.sources.parts import render_part

ROOT = Path(__file__).resolve().parent.parent
BENCH_DIR = ROOT / ".bench"
Words: TypeAlias = list[str | Path]  # of a command

PACKAGES = (
    "openvino",
    "numpy",
    "pyzmq",
    "opencv-python-headless",
    "scipy",
    "torch",
)  # torch where it is installed


# --- the machine, and the report ---


def machine() -> dict[str, Any]:
    """CPU, memory and load, since a number of milliseconds means little without them."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in cpu_lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_1min_at_start": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """What ran, package by package."""
    found = {"inspectord": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def in_words(facts: Mapping[str, Any]) -> str:
    """A table's entries in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def new_report() -> dict[str, Any]:
    """Begin a report; call it first, so that the load is the one that was there before."""
    return {"machine": machine(), "versions": versions()}


def finish(report: Mapping[str, Any], path: Path | None) -> None:
    """The line of machine and versions, and the whole report as JSON where a file was asked for."""
    print(f"{in_words(report['machine'])}; {in_words(report['versions'])}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns, the first to the left, all others to the right."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    for line in cells:
        first, *others = (
            text.rjust(width) if number else text.ljust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]))


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.2e}" if value and abs(value) < 0.001 else f"{value:.3f}".rstrip("0").rstrip(".")


def percentiles(values: npt.ArrayLike, points: Sequence[float] = (50, 99, 99.9)) -> dict[str, float]:
    """By name ("p50", "p99.9"), and the maximum; NaN where there are no values."""
    found = np.asarray(values, np.float64)
    if not found.size:
        return {f"p{point:g}": float("nan") for point in points} | {"max": float("nan")}
    picked = {f"p{p:g}": float(np.percentile(found, p)) for p in points}
    return picked | {"max": float(found.max())}


# --- commands ---

# A process's peak memory counts what its parent had when it was started, so a small process starts it.
# RUSAGE_CHILDREN is the largest of the command's processes, not their sum.
_LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": code, "seconds": time.monotonic() - began, "peak_mb": usage.ru_maxrss / 1024}))
"""


@dataclass(frozen=True)
class Measured:
    """A command's time, and peak resident memory of its largest process."""

    seconds: float
    peak_mb: float


def measured(command: Sequence[str | Path]) -> Measured:
    """Run a command to its end, its output on stderr; a failure ends the benchmark and names the command."""
    code, took = attempted(command)
    if code != 0:
        raise SystemExit(f"this step failed, see above: {' '.join(map(str, command))}")
    return took


def attempted(command: Sequence[str | Path], log: IO[str] | None = None) -> tuple[int, Measured]:
    """A command's exit code, minus the signal's number where one ended it, and what it took.

    Its output goes to log, or to stderr.
    """
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, *map(str, command)]
    done = subprocess.run(
        launcher, stdout=subprocess.PIPE, stderr=log, text=True, env=environment(), check=True
    )
    found = json.loads(done.stdout)
    return found["code"], Measured(found["seconds"], found["peak_mb"])


def environment() -> dict[str, str]:
    """This environment, with this checkout on the path of every Python process."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    }


def calibrate(*words: str | Path) -> Measured:
    """The user's own command."""
    return measured([sys.executable, "-m", "calibrate", *words])


def write_parts(folder: Path, count: int, side_px: int, seed: int, defect_rate: float = 0.0) -> Path:
    """Parts of the simulated line as files; those that teach need another seed than those inspected."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = render_part(seed, number, side_px, side_px, defect_rate).pixels
        cv2.imwrite(str(folder / f"{number:04d}.png"), pixels)
    return folder


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for recipes, configuration and state."""
    with tempfile.TemporaryDirectory(prefix="inspectord-bench-") as folder:
        yield Path(folder)
