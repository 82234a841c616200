"""One run of a line with one fault some times, or two at once: what happened, as a table's row."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.evidence import Evidence
from tests.faults.line import Line
from tests.faults.oracle import Promises, tally, violations
from tests.faults.registry import Fault, load_all

RECOVERY_LIMIT_S = 40.0  # after a pair: the longest wait for inspected parts; camera back-off may be in it


@dataclass
class Row:
    """The outcome of a run; violations [] is what counts. worst_s: of the measured recoveries."""

    name: str
    tried: int = 0
    verdicts: int = 0
    not_inspected: int = 0
    violations: list[str] = field(default_factory=list)
    worst_s: float | None = None
    took_s: float = 0.0
    skipped: str | None = None


def rng_of(seed: int, *names: object) -> random.Random:
    """The same random numbers for the same strike, whatever was tried before."""
    return random.Random(f"{seed}/{'/'.join(map(str, names))}")


def try_fault(name: str, seed: int, first: int, times: int) -> Row:
    """Strikes first, first+1, ... on one line; the strike's number and seed decide everything random."""
    fault = load_all()[name]
    row = Row(name, skipped=fault.needs())
    if row.skipped is not None:
        return row

    def strikes(line: Line) -> None:
        for number in range(first, first + times):
            rng = rng_of(seed, name, number)
            time.sleep(rng.uniform(0.05, 0.3))
            row.tried += 1
            _strike(fault, line, rng, row, f"strike {number}: ")

    return _run(row, [fault], strikes)


def try_in_turn(names: list[str], seed: int) -> Row:
    """One strike of each on one line, for the short tests, whose machine may have other things to do."""
    faults = [load_all()[name] for name in names]
    row = Row(", ".join(names))

    def strikes(line: Line) -> None:
        line.timed = False
        for fault in faults:
            row.tried += 1
            _strike(fault, line, rng_of(seed, fault.name, 0), row, "", judge_time=False)

    return _run(row, faults, strikes)


def try_pair(names: tuple[str, str], seed: int, number: int, timed: bool = True) -> Row:
    """Both at once, each from its own thread, and then both must be over."""
    faults = [load_all()[name] for name in names]
    row = Row("+".join(names), skipped=faults[0].needs() or faults[1].needs())
    if row.skipped is not None:
        return row

    def strikes(line: Line) -> None:
        row.tried, line.alone, line.timed = 1, False, timed
        threads = []
        for place, fault in enumerate(faults):
            rng = rng_of(seed, "pair", number, place, fault.name)
            threads.append(threading.Thread(target=_later, args=(rng, fault, line, rng, row)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        line.flows(RECOVERY_LIMIT_S)

    return _run(row, faults, strikes)


def pairs_of(count: int, seed: int) -> list[tuple[str, str]]:
    """Random pairs that can share a line."""
    able = [fault for fault in load_all().values() if fault.pairs and fault.needs() is None]
    together = [
        (a.name, b.name)
        for a in able
        for b in able
        if a.name < b.name and a.setup.merged(b.setup) is not None
    ]
    return rng_of(seed, "pairs").choices(together, k=count)


def _later(rng: random.Random, *arguments: Any) -> None:
    time.sleep(rng.uniform(0.0, 0.4))
    _strike(*arguments, "", judge_time=False)


def _strike(
    fault: Fault, line: Line, rng: random.Random, row: Row, where: str, judge_time: bool = True
) -> None:
    try:
        took_s = fault.strike(line, rng)
    except Exception as error:
        row.violations.append(f"{where}{fault.name}: {type(error).__name__}: {error}")
        return
    if took_s is None or not judge_time:
        return
    row.worst_s = max(row.worst_s or 0.0, took_s)
    if fault.recovers_s is not None and took_s > fault.recovers_s:
        row.violations.append(
            f"{where}{fault.name}: back after {took_s:.2f} s, promised {fault.recovers_s} s"
        )


def _run(row: Row, faults: list[Fault], strikes: Callable[[Line], None]) -> Row:
    """Start the line, strike, stop, judge. The folder is kept where something was violated."""
    folder = Path(tempfile.mkdtemp(prefix=f"line-{faults[0].name}-"))
    began_s = time.monotonic()
    setup, promises = faults[0].setup, faults[0].promises
    for fault in faults[1:]:
        both = setup.merged(fault.setup)
        assert both is not None, f"{fault.name} needs another line than {faults[0].name}"
        setup, promises = both, promises.relaxed_by(fault.promises)
    line = Line(folder, setup)
    try:
        with line:
            strikes(line)
            line.lift()
            line.check_alive()
    except Exception as error:
        row.violations.append(f"the line: {type(error).__name__}: {error}")
    evidence = line.evidence()
    if not line.timed:
        promises = promises.relaxed_by(Promises(heartbeat_gap_s=None))
    row.violations += violations(evidence, promises) + _leftovers(line, evidence)
    counts = tally(evidence)
    row.verdicts, row.not_inspected = counts["verdicts"], counts["NOT_INSPECTED"]
    row.took_s = round(time.monotonic() - began_s, 1)
    if row.violations:
        row.violations.append(f"see {folder}")
    else:
        shutil.rmtree(folder)
    return row


def _leftovers(line: Line, evidence: Evidence) -> list[str]:
    found = []
    if line.exit_codes and line.exit_codes[-1] != 0:
        found.append(f"asked to stop, the daemon ended with {line.exit_codes[-1]}")
    for boot in evidence.boots:
        for run in boot.cameras:
            if _runs_acquire(run.pid):
                found.append(f"camera process {run.pid} outlived the daemon")
    with suppress(OSError):  # a disk that a fault broke can't be looked at
        found += [f"left behind: {path}" for path in line.folder.rglob("*.tmp")]
    return found


def _runs_acquire(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"inspectord.acquire" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
