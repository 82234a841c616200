"""What the benchmarks share: the machine in words, measured commands, a real daemon and when it was heard."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import tomli_w
import zmq

from inspectord import __version__
from inspectord.messages import HEARTBEAT_SCHEMA, VerdictMessage, from_table, unpack
from inspectord.sources.parts import render_part

ROOT = Path(__file__).resolve().parent.parent
BENCH_DIR = ROOT / ".bench"
Words: TypeAlias = list[str | Path]  # of a command

PACKAGES = ("openvino", "numpy", "pyzmq", "opencv-python-headless")
START_S = 60.0  # for a daemon to compile and prove its recipe
STOP_S = 30.0


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
    words = [str(word) for word in command]
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, *words]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, env=environment(), check=True)
    found = json.loads(done.stdout)
    if found["code"] != 0:
        raise SystemExit(f"this step failed, see above: {' '.join(words)}")
    return Measured(found["seconds"], found["peak_mb"])


def environment() -> dict[str, str]:
    """This environment, with this checkout on the path of every Python process."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    }


def calibrate(*words: str | Path) -> Measured:
    """The user's own command."""
    return measured([sys.executable, "-m", "calibrate", *words])


def write_good_parts(folder: Path, count: int, side_px: int, seed: int) -> Path:
    """Good parts of the simulated line as files, of another seed than the line that is inspected."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = render_part(seed, number, side_px, side_px, defect_rate=0.0).pixels
        cv2.imwrite(str(folder / f"{number:04d}.png"), pixels)
    return folder


# --- a real daemon, and what a subscriber hears of it ---


@dataclass(frozen=True)
class Stamped:
    """One message: a verdict, or the table of a heartbeat; received_ns is CLOCK_MONOTONIC at receipt."""

    received_ns: int
    message: VerdictMessage | dict[str, Any]


class Daemon:
    """`inspectord run` in a process of its own; the subscriber is there before it, so it hears every verdict.

    with Daemon(folder, recipes, [camera]) as daemon:
        for stamped in daemon.listen(seconds=30):
            ...
    """

    def __init__(self, folder: Path, recipes: Path, cameras: list[dict[str, Any]], **more: Any) -> None:
        self._log_path, self._config_path = folder / "daemon.log", folder / "inspectord.toml"
        self._endpoint = _free_endpoint()
        config = {
            "station": "bench",
            "state_dir": str(folder / "state"),
            "recipes_dir": str(recipes),
            "publish": {"verdicts": self._endpoint, "replay": _free_endpoint()},
            "logging": {"format": "json"},
            "cameras": cameras,
            **more,
        }
        self._config_path.write_text(tomli_w.dumps(config), encoding="utf-8")

    def __enter__(self) -> Self:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)  # ms; subscribed long before the first frame
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(self._endpoint)
        command = [sys.executable, "-m", "inspectord", "run", "--config", str(self._config_path)]
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it and close the socket; SIGKILL where it does not stop."""
        self._context.destroy(linger=0)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def next(self, timeout_s: float) -> Stamped | None:
        """The next message, or None."""
        if not self._socket.poll(max(1, round(timeout_s * 1000))):
            return None
        payload = self._socket.recv_multipart()[-1]
        received_ns = time.monotonic_ns()
        found = unpack(payload)
        return Stamped(received_ns, found if found["schema"] == HEARTBEAT_SCHEMA else from_table(found))

    def verdicts(self, seconds: float | None) -> Iterator[tuple[int, VerdictMessage]]:
        """Verdicts with their time of receipt: so many seconds of them, or None for all up to the end."""
        for stamped in self.listen(seconds):
            if isinstance(stamped.message, VerdictMessage):
                yield stamped.received_ns, stamped.message

    def listen(self, seconds: float | None) -> Iterator[Stamped]:
        """All messages of so many seconds from the first verdict on, or None: until the daemon has ended.

        A daemon that ends when it should not, or says nothing for START_S, ends the benchmark.
        """
        end_s: float | None = None
        quiet_s = time.monotonic()
        while end_s is None or time.monotonic() < end_s:
            running = self.process.poll() is None  # before the socket is looked at: what it sent is there
            stamped = self.next(0.5)
            if stamped is not None:
                quiet_s = time.monotonic()
                yield stamped
                if seconds is not None and end_s is None and isinstance(stamped.message, VerdictMessage):
                    end_s = time.monotonic() + seconds
            elif not running or time.monotonic() - quiet_s > START_S:
                break
        expected = 0 if seconds is None else None  # ended well, or still running
        if self.process.poll() != expected or (seconds is not None and end_s is None):
            raise SystemExit(f"the daemon failed: {self._log_path.read_text(errors='replace')[-2000:]}")


def camera_of(stamped: Stamped) -> dict[str, Any] | None:
    """What a heartbeat says of the one camera; None for a verdict."""
    if isinstance(stamped.message, VerdictMessage):
        return None
    state: dict[str, Any] = next(iter(stamped.message["cameras"].values()))
    return state


def counts(messages: Iterable[VerdictMessage]) -> dict[str, Any]:
    """Verdicts by kind, reasons of what was not inspected, and how many numbers lack in seq (from 1)."""
    found = list(messages)
    kinds, reasons = Counter(m.verdict.value for m in found), Counter(m.reason.value for m in found)
    return {
        "verdicts": len(found),
        **{kind: kinds[kind] for kind in ("PASS", "REJECT", "NOT_INSPECTED")},
        "reasons": dict(reasons),
        "seq_missing": missing([m.seq for m in found], first=1),
    }


def missing(numbers: Sequence[int], first: int | None = None) -> int:
    """How many whole numbers lack between first (or the first one) and the last; what comes twice or
    backwards counts as well."""
    before = (numbers[0] if numbers else 0) - 1 if first is None else first - 1
    total = 0
    for number in numbers:
        total += abs(number - before - 1)
        before = number
    return total


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for recipes, configuration and state."""
    with tempfile.TemporaryDirectory(prefix="inspectord-bench-") as folder:
        yield Path(folder)


def _free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
