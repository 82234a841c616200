"""What the daemon adds to inference, and trigger-to-verdict time: a simulated line at a fixed rate.

    python -m benchmarks.overhead [--rate 50] [--seconds 30] [--json FILE]

The line's triggers have exact times, and t_fetch is the trigger's own, so late rendering counts. Both ends
read one clock: latency = receipt - t_fetch, overhead = latency - inference_ms, which holds the wait for the
frame, ring, judging, encoding, ZeroMQ and the subscriber's wake-up. `inspectord bench` finds the highest rate
of a user's own recipe; this asks what comes on top of inference at a given rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks._common import (
    calibrate,
    finish,
    in_words,
    new_report,
    percentiles,
    scratch,
    table,
    write_good_parts,
)
from benchmarks._daemon import Daemon, counts
from inspectord.messages import VerdictMessage
from inspectord.recipe import active_recipe

GOOD_PARTS = 40
SIDE_PX = 256
FIT_SEED, LINE_SEED = 1, 2
WARM_UP_S = 1.0  # verdicts left out of the times: first pages, first kernels


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """The report as plain data."""
    report = new_report()
    with scratch() as work:
        good = write_good_parts(work / "good", GOOD_PARTS, SIDE_PX, FIT_SEED)
        calibrate("fit", good, "--product", "flange", "--recipes", work / "recipes")
        recipe = active_recipe(work / "recipes", "flange")
        source = {
            "kind": "line",
            "rate_hz": args.rate,
            "seed": LINE_SEED,
            "width": SIDE_PX,
            "height": SIDE_PX,
        }
        camera = {"name": "cam1", "recipe": "flange", "source": source, "deadline_ms": args.deadline_ms}
        with Daemon(work, work / "recipes", [camera]) as daemon:
            heard = list(daemon.verdicts(args.seconds + WARM_UP_S))
    from_ns = heard[0][0] + round(WARM_UP_S * 1e9)
    timed = [(received_ns, message) for received_ns, message in heard if received_ns >= from_ns]
    span_s = (timed[-1][1].t_fetch_ns - timed[0][1].t_fetch_ns) / 1e9
    return report | {
        "settings": {"rate_hz": args.rate, "seconds": args.seconds, "deadline_ms": args.deadline_ms},
        "recipe": {"good_parts": recipe.spec.limits.good_parts, "backbone": recipe.spec.model.backbone},
        "verdicts": counts(message for _, message in heard),
        "timed": len(timed),
        "seen_hz": (len(timed) - 1) / span_s,
        "times_ms": times_ms(timed),
    }


def times_ms(timed: list[tuple[int, VerdictMessage]]) -> dict[str, dict[str, float]]:
    """Percentiles of overhead and inference over what was inferred, of latency over everything."""
    latency = [(received_ns - message.t_fetch_ns) / 1e6 for received_ns, message in timed]
    inferred = [
        (total, message.inference_ms)
        for total, (_, message) in zip(latency, timed, strict=True)
        if message.inference_ms is not None
    ]
    return {
        "overhead": percentiles([total - inference for total, inference in inferred]),
        "inference": percentiles([inference for _, inference in inferred]),
        "trigger to verdict": percentiles(latency),
    }


def print_report(report: dict[str, Any]) -> None:
    """For a reader at a terminal."""
    print(f"{in_words(report['settings'])}; seen {report['seen_hz']:.2f} parts/s, {report['timed']} timed")
    print(in_words(report["verdicts"]))
    times = report["times_ms"]
    names = list(times["overhead"])
    table(("ms", *names), [(what, *(values[name] for name in names)) for what, values in times.items()])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description="The daemon's overhead on a simulated line."
    )
    parser.add_argument("--rate", type=float, default=50.0, help="parts a second; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--deadline-ms", type=float, default=200.0, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    report = benchmark(parser.parse_args(argv))
    print_report(report)
    finish(report, parser.parse_args(argv).json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
