"""What the daemon adds to inference: parts at a fixed rate, from the ring to a subscriber.

    python -m benchmarks.overhead [--rate 50] [--seconds 30] [--curve] [--json FILE]

Pictures of the simulated line, 1 in 10 defective, are replayed at an exact rate; t_fetch is stamped just
before a frame is copied into the ring. Both ends read one clock: latency = receipt - t_fetch, and
overhead = latency - inference_ms. Its two parts meet at t_decided: before lie the copy into the ring, the
daemon's wake-up and judging; after it encoding, ZeroMQ's thread, loopback TCP and the subscriber, a Python
process on the same cores. `inspectord bench` finds the highest rate of a user's own recipe; this asks what
comes on top of inference.
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
    scratch,
    write_parts,
)
from benchmarks._daemon import Daemon, counts, print_times, times_ms
from inspectord.recipe import active_recipe

GOOD_PARTS, PARTS = 100, 200
DEFECT_RATE = 0.1
SIDE_PX = 256
FIT_SEED, LINE_SEED = 1, 2
WARM_UP_S = 1.0  # verdicts left out of the times: first pages, first kernels


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """The report as plain data."""
    report = new_report()
    with scratch() as work:
        good = write_parts(work / "good", GOOD_PARTS, SIDE_PX, FIT_SEED)
        calibrate("fit", good, "--product", "flange", "--recipes", work / "recipes")
        recipe = active_recipe(work / "recipes", "flange")
        parts = write_parts(work / "parts", PARTS, SIDE_PX, LINE_SEED, DEFECT_RATE)
        source = {"kind": "folder", "path": str(parts), "rate_hz": args.rate, "loop": True}
        camera = {"name": "cam1", "recipe": "flange", "source": source, "deadline_ms": args.deadline_ms}
        with Daemon(work, work / "recipes", [camera], curve=args.curve) as daemon:
            heard = list(daemon.verdicts(args.seconds + WARM_UP_S))
    from_ns = heard[0][0] + round(WARM_UP_S * 1e9)
    timed = [(received_ns, message) for received_ns, message in heard if received_ns >= from_ns]
    span_s = (timed[-1][1].t_fetch_ns - timed[0][1].t_fetch_ns) / 1e9
    return report | {
        "settings": {
            "rate_hz": args.rate,
            "seconds": args.seconds,
            "deadline_ms": args.deadline_ms,
            "curve": args.curve,
        },
        "recipe": {"good_parts": recipe.spec.limits.good_parts, "backbone": recipe.spec.model.backbone},
        "verdicts": counts(message for _, message in heard),
        "timed": len(timed),
        "seen_hz": (len(timed) - 1) / span_s,
        "times_ms": times_ms(timed),
    }


def print_report(report: dict[str, Any]) -> None:
    """For a reader at a terminal."""
    print(f"{in_words(report['settings'])}; seen {report['seen_hz']:.2f} parts/s, {report['timed']} timed")
    print(in_words(report["verdicts"]))
    print_times(report["times_ms"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description="The daemon's overhead on a simulated line."
    )
    parser.add_argument("--rate", type=float, default=50.0, help="parts a second; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--deadline-ms", type=float, default=200.0, help="default: %(default)s")
    parser.add_argument("--curve", action="store_true", help="encrypted, as to gateways; default: plain")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    report = benchmark(parser.parse_args(argv))
    print_report(report)
    finish(report, parser.parse_args(argv).json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
