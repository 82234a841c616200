"""No fault at all, for long: 2 cameras, 50 parts a second in total, the built-in backbone, one daemon.

    python -m tests.faults.soak --minutes 30

Every verdict must come, once and in order; memory, file descriptors and threads of the daemon and of its
camera processes must stay as they were after the first minute. Then the daemon is killed and restarted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks._common import ROOT, calibrate, finish, new_report, percentiles, scratch, table
from benchmarks._daemon import Daemon, Stamped
from inspectord.messages import VerdictMessage
from tests.faults.evidence import read_journal

RATE_HZ = 25.0  # of each of the two cameras
GOOD = 120  # parts to learn from
SAMPLE_S = 5.0
SETTLED_S = 60.0  # the minute after it is what all later ones are compared with
MOST_GROWTH = 0.01
READY_S = 5.0
# The history for replays is full with so many verdicts a camera after 40 s. Its default of 10,000 is full
# after 7 minutes, with about 10 MB a camera: bounded, but no flat line.
REPLAY_DEPTH = 1000


@dataclass
class Heard:
    """What the subscriber got of one camera."""

    kinds: Counter[str] = field(default_factory=Counter)
    latency_ms: list[float] = field(default_factory=list)  # trigger to subscriber
    faults: list[str] = field(default_factory=list)
    last: VerdictMessage | None = None

    def add(self, received_ns: int, message: VerdictMessage) -> None:
        seq, trigger_id = (self.last.seq, self.last.trigger_id) if self.last else (0, 0)
        if (message.seq, message.trigger_id) != (seq + 1, trigger_id + 1):
            self.faults.append(f"after seq {seq}, trigger {trigger_id}: {message.seq}, {message.trigger_id}")
        self.last = message
        self.kinds[message.verdict] += 1
        self.latency_ms.append((received_ns - message.t_fetch_ns) / 1e6)


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

    t_s: float  # since the first verdict
    process: str
    rss_mb: float
    fds: int
    threads: int


def main() -> int:
    options = _parser().parse_args()
    os.environ["INSPECTORD_PUBLISH__REPLAY_DEPTH"] = str(REPLAY_DEPTH)
    report = new_report()
    with scratch() as folder:
        recipes = _teach(folder)
        report |= _soak(folder, recipes, options.minutes * 60)
        report["ready_after_kill_s"] = _restart(folder, recipes)
    report["violations"] += _broken(report)
    _show(report)
    finish(report, options.json)
    return int(bool(report["violations"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=30.0, help="at least 3")
    parser.add_argument("--json", type=Path, default=ROOT / ".faults" / "soak.json")
    return parser


def _teach(folder: Path) -> Path:
    good, recipes = folder / "good", folder / "recipes"
    calibrate("capture", good, "--line", "--seed", "1", "--rate", "200", "--frames", str(GOOD))
    calibrate("fit", good, "--product", "flange", "--recipes", recipes, "--max-false-rejects", "1/100")
    return recipes


def _daemon(folder: Path, recipes: Path) -> Daemon:
    cameras = [
        {
            "name": f"cam{number + 1}",
            "recipe": "flange",
            "source": {"kind": "line", "seed": number + 2, "rate_hz": RATE_HZ},
        }
        for number in range(2)
    ]
    more = {"security": {"mode": "plain"}, "images": {"quota_mb": 50}}
    return Daemon(folder, recipes, cameras, inference={"cache_dir": str(folder / "cache")}, **more)


def _soak(folder: Path, recipes: Path, seconds: float) -> dict[str, Any]:
    heard: dict[str, Heard] = {}
    samples: list[Sample] = []
    began_s = time.monotonic()
    with _daemon(folder, recipes) as daemon:
        due_s = 0.0
        for stamped in daemon.listen(seconds):
            if isinstance(stamped.message, VerdictMessage):
                heard.setdefault(stamped.message.camera, Heard()).add(stamped.received_ns, stamped.message)
            elif time.monotonic() >= due_s:
                due_s = time.monotonic() + SAMPLE_S
                samples += _sample(daemon.process.pid, stamped, began_s)
        daemon.process.kill()
        daemon.process.wait()
    return _figures(heard, samples) | {"journal_rows": _journaled(folder)}


def _sample(pid: int, heartbeat: Stamped, began_s: float) -> list[Sample]:
    assert isinstance(heartbeat.message, dict)
    pids = {name: camera["pid"] for name, camera in heartbeat.message["cameras"].items() if camera["pid"]}
    samples = []
    for name, each in {"daemon": pid, **pids}.items():
        process = psutil.Process(each)
        with process.oneshot():
            rss_mb, threads = process.memory_info().rss / 1e6, process.num_threads()
        samples.append(Sample(time.monotonic() - began_s, name, rss_mb, process.num_fds(), threads))
    return samples


def _figures(heard: dict[str, Heard], samples: list[Sample]) -> dict[str, Any]:
    processes = {}
    for name in sorted({sample.process for sample in samples}):
        mine = [sample for sample in samples if sample.process == name]
        start = [s for s in mine if SETTLED_S <= s.t_s - mine[0].t_s < 2 * SETTLED_S] or mine[:1]
        end = [s for s in mine if s.t_s > mine[-1].t_s - SETTLED_S]
        before, after = (float(np.median([s.rss_mb for s in part])) for part in (start, end))
        processes[name] = {
            "rss_mb": [round(before, 2), round(after, 2)],
            "growth": round(after / before - 1, 5),
            "fds": [max(s.fds for s in start), max(s.fds for s in end)],
            "threads": [max(s.threads for s in start), max(s.threads for s in end)],
        }
    return {
        "cameras": {name: dict(each.kinds) for name, each in sorted(heard.items())},
        "latency_ms": percentiles([ms for each in heard.values() for ms in each.latency_ms]),
        "processes": processes,
        "violations": [f"{name}: {text}" for name, each in heard.items() for text in each.faults],
    }


def _journaled(folder: Path) -> dict[str, int]:
    journal = read_journal(folder / "state" / "journal.sqlite")
    return {camera: len(rows) for (_, camera), rows in sorted(journal.items())}


def _restart(folder: Path, recipes: Path) -> float:
    """Seconds from the next daemon's start, its model in the cache, to a heartbeat that says ready."""
    with _daemon(folder, recipes) as daemon:
        began_s = time.monotonic()
        for stamped in daemon.listen(10.0):
            if isinstance(stamped.message, dict) and stamped.message["state"] == "ready":
                return round(time.monotonic() - began_s, 2)
    return float("nan")


def _broken(report: dict[str, Any]) -> list[str]:
    """What was promised and not kept."""
    found = []
    for name, each in report["processes"].items():
        if not each["growth"] < MOST_GROWTH:
            found.append(f"{name} grew by {each['growth']:.1%}")
        for what in ("fds", "threads"):
            if each[what][1] > each[what][0]:
                found.append(f"{name}: {what} went from {each[what][0]} to {each[what][1]}")
    if not report["ready_after_kill_s"] < READY_S:
        found.append(f"ready {report['ready_after_kill_s']} s after the start")
    return found


def _show(report: dict[str, Any]) -> None:
    table(
        ("camera", "PASS", "REJECT", "NOT_INSPECTED"),
        [
            (name, *(kinds.get(verdict, 0) for verdict in ("PASS", "REJECT", "NOT_INSPECTED")))
            for name, kinds in report["cameras"].items()
        ],
    )
    table(
        ("process", "MB in the 2nd minute", "MB in the last", "growth", "fds", "threads"),
        [
            (
                name,
                *each["rss_mb"],
                f"{each['growth']:+.2%}",
                *("{} to {}".format(*each[w]) for w in ("fds", "threads")),
            )
            for name, each in report["processes"].items()
        ],
    )
    times = report["latency_ms"]
    print("trigger to subscriber: " + ", ".join(f"{name} {value:.2f} ms" for name, value in times.items()))
    print(f"ready {report['ready_after_kill_s']} s after kill -9 and a start")
    print("\n".join(f"violated: {text}" for text in report["violations"]) or "0 lost, 0 twice, nothing grew")


if __name__ == "__main__":
    raise SystemExit(main())
