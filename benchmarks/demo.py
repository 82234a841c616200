"""The main job on this machine, in one go: teach a part from good ones, inspect a line, count what came out.

Everything is simulated (a seeded line of turned flanges with known defects) but nothing is faked: the same
commands, processes, shared memory and ZeroMQ messages as beside a real line.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, calibrate, finish, new_report, percentiles, table
from benchmarks._daemon import Daemon, counts
from inspectord.messages import Verdict, VerdictMessage
from inspectord.sources.parts import GOOD, truth

SEED_GOOD, SEED_LINE = 1, 2
DEFECT_RATE = 0.1


def main() -> int:
    options = _options()
    report = new_report()
    folder: Path = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _say("1. grab good parts from the (simulated) line, without knowing any defect")
    good, recipes = folder / "good", folder / "recipes"
    _run("capture", good, "--line", "--seed", str(SEED_GOOD), "--rate", "200", "--frames", str(options.good))
    _say("2. teach: fit a recipe from them, with a limit of at most 1 false reject in 1,000")
    wanted = ("--product", "flange", "--recipes", recipes, "--max-false-rejects", "1/1000")
    fitted = _run("fit", good, *wanted, *options.fit_options)
    _say(f"3. inspect {options.parts} triggered parts at {options.rate:g} a second, 1 in 10 defective")
    received, messages = _inspect(folder, recipes, options)
    report |= {
        "fit_seconds": fitted.seconds,
        "triggers": options.parts,
        **counts(messages),
        **_tally(messages),
        "latency_ms": percentiles([m.latency_ms for m in messages], (50, 99)),
        "on_the_wire_ms": percentiles(
            [(ns - m.t_fetch_ns) / 1e6 for ns, m in zip(received, messages, strict=True)], (50, 99)
        ),
    }
    _show(report, folder)
    finish(report, options.json)
    exactly_once = report["verdicts"] == options.parts and report["seq_missing"] == 0
    return 0 if exactly_once else 1


def _inspect(
    folder: Path, recipes: Path, options: argparse.Namespace
) -> tuple[list[int], list[VerdictMessage]]:
    """Run the daemon to the line's end; times of receipt and verdicts as a subscriber got them."""
    source = {
        "kind": "line",
        "seed": SEED_LINE,
        "rate_hz": options.rate,
        "parts": options.parts,
        "defect_rate": DEFECT_RATE,
    }
    camera: dict[str, Any] = {"name": "line", "recipe": "flange", "deadline_ms": 200, "source": source}
    with Daemon(folder, recipes, [camera]) as daemon:
        heard = list(daemon.verdicts(None))
    return [ns for ns, _ in heard], [message for _, message in heard]


def _tally(messages: list[VerdictMessage]) -> dict[str, Any]:
    """What each part really was against what was said of it."""
    kinds: Counter[str] = Counter()
    wrong: Counter[str] = Counter()  # good ones rejected, defective ones passed
    late: Counter[str] = Counter()
    for message in messages:
        kind = truth(SEED_LINE, int(message.part_id), DEFECT_RATE)
        kinds[kind] += 1
        wrong[kind] += message.verdict is (Verdict.REJECT if kind == GOOD else Verdict.PASS)
        late[kind] += message.verdict is Verdict.NOT_INSPECTED
    return {
        "good_parts": kinds[GOOD],
        "false_rejects": wrong[GOOD],
        "good_not_inspected": late[GOOD],
        "defective_parts": sum(kinds.values()) - kinds[GOOD],
        "escapes": sum(wrong.values()) - wrong[GOOD],
        "defective_not_inspected": sum(late.values()) - late[GOOD],
        "by_defect": {kind: [wrong[kind], kinds[kind]] for kind in sorted(kinds) if kind != GOOD},
    }


def _show(report: dict[str, Any], folder: Path) -> None:
    _say("4. what a subscriber saw")
    print(f"{report['verdicts']} verdicts for {report['triggers']} triggers, {report['seq_missing']} missing")
    rows = [
        ("good parts", report["good_parts"], f"{report['false_rejects']} rejected (false rejects)"),
        ("  of these", report["good_not_inspected"], "not inspected in time, as where this machine is busy"),
        ("defective parts", report["defective_parts"], f"{report['escapes']} passed (escapes)"),
        (
            "  of these",
            report["defective_not_inspected"],
            "not inspected in time, so none of these passed",
        ),
        ("not inspected", report["NOT_INSPECTED"], "a line treats these as rejects"),
    ]
    rows += [(f"  {kind}", of, f"{missed} escaped") for kind, (missed, of) in report["by_defect"].items()]
    table(("", "parts", "outcome"), rows)
    for what, name in (("trigger to verdict", "latency_ms"), ("trigger to subscriber", "on_the_wire_ms")):
        times = report[name]
        print(f"{what}: p50 {times['p50']:.2f} ms, p99 {times['p99']:.2f} ms, max {times['max']:.2f} ms")
    print(f"report of the fit: {folder / 'recipes' / 'flange' / 'active' / 'report.html'}")
    print(f"rejected frames with their heat maps: {folder / 'state' / 'rejects'}")


def _run(*words: str | Path) -> Any:
    print("$ calibrate", *words, flush=True)
    return calibrate(*words)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="emptied first, kept afterwards")
    parser.add_argument("--good", type=int, default=300, help="good parts to learn from")
    parser.add_argument("--parts", type=int, default=500, help="parts to inspect")
    parser.add_argument("--rate", type=float, default=25.0, help="parts a second")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "fit_options", nargs="*", metavar="-- FIT OPTION", help="after --: more options for `calibrate fit`"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
