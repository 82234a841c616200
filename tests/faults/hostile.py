"""Thousands of hostile connections of all kinds at once, against a real daemon with an honest subscriber.

    python -m tests.faults.hostile --connections 10000 --seed 1
    python -m tests.faults.hostile --connections 10000 --seed 1 --plain

What must hold: nothing crashes; the honest subscriber hears every verdict live and in order; memory and file
descriptors come back. With --plain (security.mode = "plain") floods of subscriptions reach the socket: the
daemon then turns everybody out for a moment, and the client tells of the silence and fetches what it missed.
Attackers share the machine's cores with the daemon here: on a busy one parts come out as not inspected, which
is counted and no problem.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from inspectord.client import Gap, Inspected, Silence
from inspectord.messages import Verdict
from tests.faults.line import Line, Setup
from tests.faults.network import attacked
from tests.faults.oracle import Promises, violations

# Of every 100 connections. Those of ASKERS are requests; insiders have an allowed client's keys.
MIX = {
    "connects": 25,
    "port-scan": 15,
    "garbage": 15,
    "truncated-curve": 9,
    "oversize": 8,
    "half-open": 8,
    "wrong-mechanism": 5,
    "curve-hello-flood": 4,
    "strangers": 4,
    "slowloris": 3,
    "never-reads": 2,
    "huge-subscription": 2,
}
INSIDE = {
    "stalled-subscribers": 20,
    "slow-readers": 20,
    "killed-subscribers": 5,
    "odd-requests": 300,
    "unread-replies": 1000,
}
OF_VERDICTS = {
    "never-reads",
    "huge-subscription",
    "strangers",
    "stalled-subscribers",
    "slow-readers",
    "killed-subscribers",
}
OF_REPLAY = {"odd-requests", "unread-replies"}
RATE_HZ = 50.0
CALM_S = 5.0  # before and after, to compare with
AT_ONCE = 4
AS_ITS_UNIT = ("nice", "-n", "-5")  # attackers have no share of a real box's cores
MOST_ROUNDS = 5  # each kind comes several times, so that all kinds overlap
MOST_GROWTH = 24 << 20  # bytes; allocators keep some of what a thousand connections needed


@dataclass
class Outcome:
    """latencies: from trigger to the honest subscriber, in ms, as [p50, p99, max]."""

    connections: int = 0
    requests: int = 0
    attacks: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: float = 0.0
    verdicts: int = 0
    not_inspected: int = 0
    live: int = 0
    historical: int = 0
    silences_ms: list[int] = field(default_factory=list)  # of the honest client: no heartbeat for a second
    calm_ms: list[float] = field(default_factory=list)
    attacked_ms: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)  # before, most, after
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def attack(connections: int, seed: int, curve: bool, calm_s: float = CALM_S) -> Outcome:
    """The whole run; problems is [] where all that is promised was kept."""
    outcome = Outcome()
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    line = Line(folder, Setup(curve=curve, rate_hz=RATE_HZ, wrapper=AS_ITS_UNIT))
    with line:
        time.sleep(calm_s)
        meter = _Meter(line.pid)
        began_ns = time.monotonic_ns()
        outcome.calm_ms = _latencies(line, 0, began_ns)
        _strike(line, _plan(connections, seed, curve), outcome, meter)
        ended_ns = time.monotonic_ns()
        outcome.seconds = (ended_ns - began_ns) / 1e9
        outcome.attacked_ms = _latencies(line, began_ns, ended_ns)
        line.flows(20)
        _come_back(meter, outcome, calm_s)
        if not line.alive():
            outcome.problems.append("the daemon ended")
    _judge(line, outcome, curve)
    if not outcome.problems:
        shutil.rmtree(folder)
    return outcome


def _plan(connections: int, seed: int, curve: bool) -> list[tuple[str, str, int, int, bool]]:
    """(attack, port, seed, count, inside) in random order."""
    rng = random.Random(seed)
    whole, rounds = sum(MIX.values()), min(MOST_ROUNDS, 1 + connections // 1000)
    plan = []
    for name, share in MIX.items():
        for number in range(rounds):
            count = -(-connections * share // (whole * rounds))
            ports = ["verdicts"] if name in OF_VERDICTS else ["verdicts", "replay"]
            plan.append((name, ports[number % len(ports)], rng.randrange(1 << 30), count, False))
    for name, count in INSIDE.items():
        port = "replay" if name in OF_REPLAY else "verdicts"
        plan.append((name, port, rng.randrange(1 << 30), -(-count * connections // 10_000), curve))
    rng.shuffle(plan)
    return plan


def _strike(line: Line, plan: list[tuple[str, str, int, int, bool]], outcome: Outcome, meter: _Meter) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(attacked, line, *each): each for each in plan}
        while not all(future.done() for future in running):
            meter.read()
            time.sleep(0.1)
        for future, (name, _, _, count, _) in running.items():
            tally = outcome.attacks.setdefault(name, {})
            try:
                outcome.attacks[name] = dict(Counter(tally) + future.result())
            except Exception as error:
                outcome.problems.append(f"{name}: {error}"[:300])
            if name in OF_REPLAY:
                outcome.requests += count
            else:
                outcome.connections += count


class _Meter:
    """Memory, descriptors and threads of the daemon: at first, at most, now."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.first = self.most = self.now = self._values()
        self.first_files = self.files()

    def files(self) -> list[str]:
        """What the descriptors are, without their inode numbers."""
        found = []
        for entry in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(entry.readlink().as_posix().partition(":[")[0])
        return found

    def read(self) -> None:
        if self._process.is_running():
            self.now = self._values()
            self.most = tuple(map(max, self.most, self.now))

    def _values(self) -> tuple[int, ...]:
        return self._process.memory_info().rss, self._process.num_fds(), self._process.num_threads()


def _come_back(meter: _Meter, outcome: Outcome, calm_s: float) -> None:
    """Silent peers are closed within seconds."""
    end_s = time.monotonic() + 15
    while time.monotonic() < end_s:
        meter.read()
        if meter.now[1] <= meter.first[1] + 1:
            break
        time.sleep(0.2)
    time.sleep(calm_s)
    meter.read()
    rows = list(zip(meter.first, meter.most, meter.now, strict=True))
    outcome.rss_mb = [round(value / 2**20, 1) for value in rows[0]]
    outcome.descriptors, outcome.threads = list(rows[1]), list(rows[2])
    if meter.now[0] > meter.first[0] + MOST_GROWTH:
        outcome.problems.append(f"memory did not come back: {outcome.rss_mb} MB")
    if meter.now[1] > meter.first[1] + 1 or meter.now[2] > meter.first[2]:
        opened = Counter(meter.files()) - Counter(meter.first_files)
        outcome.problems.append(
            f"descriptors {rows[1]} or threads {rows[2]} did not come back: {dict(opened)}"
        )


def _judge(line: Line, outcome: Outcome, curve: bool) -> None:
    promises = Promises() if curve else Promises(subscriber_complete=False)
    outcome.problems += violations(line.evidence(), promises)
    heard = [each.message for each in line.recorder.heard]
    outcome.verdicts = len(heard)
    outcome.not_inspected = sum(message.verdict is Verdict.NOT_INSPECTED for message in heard)
    events = [event for _, event in line.recorder.events]
    given = [event.message for event in events if isinstance(event, Inspected)]
    outcome.live = sum(not message.historical for message in given)
    outcome.historical = len(given) - outcome.live
    seqs = [message.seq for message in given]
    if seqs != list(range(1, len(seqs) + 1)):
        outcome.problems.append("the honest client missed verdicts")
    outcome.silences_ms = [round(event.silent_ms) for event in events if isinstance(event, Silence)]
    if any(isinstance(event, Gap) for event in events) or (curve and outcome.historical):
        outcome.problems.append("the honest client had to fetch verdicts, or could not")
    if curve and outcome.attacks.get("strangers", {}).get("let_in"):
        outcome.problems.append("strangers were let in")


def _latencies(line: Line, first_ns: int, last_ns: int) -> list[float]:
    """Of the parts fetched between the two: p50, p99 and the worst, in ms, from trigger to subscriber."""
    found = [
        (each.t_ns - each.message.t_fetch_ns) / 1e6
        for each in line.recorder.heard
        if first_ns <= each.message.t_fetch_ns <= last_ns
    ]
    return [round(float(value), 2) for value in np.percentile(found, [50, 99, 100])] if found else []


def _table(outcome: Outcome) -> str:
    lines = ["| attack | what came of it |", "|---|---|"]
    for name, tally in sorted(outcome.attacks.items()):
        lines.append(f"| {name} | {', '.join(f'{key} {value}' for key, value in sorted(tally.items()))} |")
    lines += [
        "",
        f"{outcome.connections} connections and {outcome.requests} requests in {outcome.seconds:.0f} s",
    ]
    lines.append(f"verdicts {outcome.verdicts}, not inspected {outcome.not_inspected}")
    counts = f"{outcome.live} live, {outcome.historical} fetched again, silent {outcome.silences_ms} ms"
    lines.append(f"honest client: {counts}")
    lines.append(
        f"trigger to subscriber, ms (p50, p99, max): calm {outcome.calm_ms}, attacked {outcome.attacked_ms}"
    )
    lines.append(f"before, most, after: memory {outcome.rss_mb} MB, descriptors {outcome.descriptors}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    outcome = attack(options.connections, options.seed, not options.plain)
    print(_table(outcome))
    for problem in outcome.problems[:20]:
        print("PROBLEM:", problem)
    table: dict[str, Any] = asdict(outcome) | {"seed": options.seed, "curve": not options.plain}
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return int(bool(outcome.problems))


if __name__ == "__main__":
    sys.exit(main())
