"""Try faults by name, some or all, alone and in random pairs, and say what happened.

    python -m tests.faults.run --list
    python -m tests.faults.run --fault camera_killed --times 20 --seed 1
    python -m tests.faults.run --all --times 20 --pairs 200 --jobs 2

Every run's outcome is a file below --out as soon as it is known; an interrupted command goes on from there,
and --again tries everything anew. The table is written there as faults.md and faults.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.registry import load_all
from tests.faults.trial import Row, pairs_of, try_fault, try_pair

ROOT = Path(__file__).resolve().parents[2]
Unit = tuple[str, Any, tuple[Any, ...]]  # file name, function, its arguments


def main() -> int:
    options = _parser().parse_args()
    faults = load_all()
    if options.list:
        for fault in faults.values():
            print(f"{fault.name:24} {fault.what}")
        return 0
    names = list(faults) if options.all else options.fault
    unknown = set(names) - set(faults)
    if unknown:
        print(f"no fault {', '.join(sorted(unknown))}; see --list", file=sys.stderr)
        return 64
    units = _units(names, options.times, options.pairs, options.seed)
    if options.again:
        shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    _run_all(units, options.out, options.jobs)
    return _report(units, options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / ".faults")
    return parser


def _units(names: list[str], times: int, pairs: int, seed: int) -> list[Unit]:
    """Each fault in runs of as many strikes as one daemon survives, then the pairs."""
    units: list[Unit] = []
    faults = load_all()
    for name in names:
        step = faults[name].strikes_a_run
        for first in range(0, times, step):
            count = min(step, times - first)
            units.append((f"{name}-{seed}-{first}-{count}", try_fault, (name, seed, first, count)))
    for number, pair in enumerate(pairs_of(pairs, seed) if pairs else []):
        units.append((f"pair-{seed}-{number}-{'+'.join(pair)}", try_pair, (pair, seed, number)))
    return units


def _run_all(units: list[Unit], out: Path, jobs: int) -> None:
    todo = [unit for unit in units if not _file(out, unit).exists()]
    print(f"{len(units)} runs, {len(units) - len(todo)} known already", flush=True)
    # Workers are spawned: recorders have threads and sockets, which must not be forked.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(unit[1], *unit[2]): unit for unit in todo}
        try:
            for future in concurrent.futures.as_completed(futures):
                row, path = _outcome(future, futures[future]), _file(out, futures[future])
                path.write_text(json.dumps(asdict(row), indent=1) + "\n")
                print(_in_words(row), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _outcome(future: concurrent.futures.Future[Row], unit: Unit) -> Row:
    """What broke the harness itself is told in the table like a violation, and the rest goes on."""
    try:
        return future.result()
    except Exception as error:
        return Row(unit[0], violations=[f"the harness failed: {type(error).__name__}: {error}"])


def _file(out: Path, unit: Unit) -> Path:
    return out / f"{unit[0]}.json"


def _in_words(row: Row) -> str:
    if row.skipped:
        return f"{row.name}: skipped, {row.skipped}"
    worst = "" if row.worst_s is None else f", back after {row.worst_s:.2f} s at worst"
    text = f"{row.name}: {row.tried} times, {row.verdicts} verdicts, {row.not_inspected} not inspected{worst}"
    text += f", {len(row.violations)} violations ({row.took_s:.0f} s)"
    return "\n  ".join([text, *row.violations[:12]])


def _report(units: list[Unit], out: Path) -> int:
    """The table of these runs, in the order asked for; 1 where anything was violated."""
    rows = [Row(**json.loads(_file(out, unit).read_text())) for unit in units if _file(out, unit).exists()]
    whats = {fault.name: fault.what for fault in load_all().values()}
    merged: dict[str, Row] = {}
    for row in rows:
        _add(merged.setdefault("random pairs" if "+" in row.name else row.name, Row(row.name)), row)
    lines = [
        "| fault | times | verdicts | not inspected | violations | worst recovery |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in merged.items():
        what = whats.get(name, "two faults at the same moment")
        worst = "" if row.worst_s is None else f"{row.worst_s:.2f} s"
        times = f"skipped: {row.skipped}" if row.skipped else row.tried
        counts = f"{row.verdicts} | {row.not_inspected} | {len(row.violations)} | {worst}"
        lines.append(f"| `{name}`: {what} | {times} | {counts} |")
    (out / "faults.md").write_text("\n".join(lines) + "\n")
    (out / "faults.json").write_text(
        json.dumps({name: asdict(row) for name, row in merged.items()}, indent=1)
    )
    print("\n".join(lines))
    return int(any(row.violations for row in rows))


def _add(total: Row, row: Row) -> None:
    total.tried += row.tried
    total.verdicts += row.verdicts
    total.not_inspected += row.not_inspected
    total.violations += row.violations
    total.took_s += row.took_s
    total.skipped = total.skipped or row.skipped
    if row.worst_s is not None:
        total.worst_s = max(total.worst_s or 0.0, row.worst_s)


if __name__ == "__main__":
    sys.exit(main())
