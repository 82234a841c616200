"""A simulated GenICam camera through the daemon: is a frame lost, and how fast does a dead camera return?

    python -m benchmarks.genicam [--seconds 60] [--fps 20] [--kills 5] [--json FILE]

The camera is one of the GenTL producer viky.cti that comes with the genicam package: 400x400 Mono8, a
bouncing ball. A recipe is fitted on frames captured from it. After the run its process is killed with
SIGKILL, again and again; times run from the kill to the receipt of the NOT_INSPECTED with reason
camera_lost, and of the next inspected frame. A camera that ran for less than 30 s is started again with a
growing delay (none, 0.5 s, 1 s, ...), so kills that shall each show a first failure lie further apart:
--between.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import genicam

from benchmarks._common import calibrate, finish, in_words, new_report, scratch, table
from benchmarks._daemon import Daemon, Stamped, camera_of, counts, missing, print_times, times_ms
from inspectord.frame import FrameStatus
from inspectord.messages import Reason, Verdict, VerdictMessage
from inspectord.settings import GenicamSource
from inspectord.sources import open_source

SERIAL = "0"
CAPTURED = 60  # frames to fit on
LIMIT_S = 60.0  # a camera that does not come back by then never does


def viky(fps: float) -> GenicamSource:
    """The simulated camera."""
    producer = Path(genicam.__file__).parent / "viky.cti"
    features: dict[str, bool | int | float | str] = {"AcquisitionFrameRate": fps}
    return GenicamSource(cti=producer, serial=SERIAL, pixel_format="Mono8", features=features)


def capture(source: GenicamSource, folder: Path, count: int) -> None:
    """So many frames as files."""
    folder.mkdir()
    written, end_s = 0, time.monotonic() + LIMIT_S
    with open_source(source, None) as frames:
        while written < count and time.monotonic() < end_s:
            item = frames.next(1.0)
            if item is not None and item[0].status is FrameStatus.OK and item[1] is not None:
                cv2.imwrite(str(folder / f"{written:04d}.png"), item[1])
                written += 1
    if written < count:
        raise SystemExit(f"the camera gave {written} of {count} frames within {LIMIT_S:g} s")


def steady(daemon: Daemon, seconds: float) -> dict[str, Any]:
    """A run without faults: what was counted on both sides, and the times."""
    state: dict[str, Any] = {}
    heard: list[tuple[int, VerdictMessage]] = []
    for stamped in daemon.listen(seconds):
        if isinstance(stamped.message, VerdictMessage):
            heard.append((stamped.received_ns, stamped.message))
        else:
            state = camera_of(stamped) or {}
    messages = [message for _, message in heard]
    span_s = (messages[-1].t_fetch_ns - messages[0].t_fetch_ns) / 1e9
    return {
        "seconds": span_s,
        "seen_hz": (len(messages) - 1) / span_s,
        "frames_in_last_heartbeat": state["frames"],
        "displaced": state["displaced"],
        "restarts": state["restarts"],
        "frame_id_missing": missing([m.frame_id for m in messages if m.reason is not Reason.FRAME_LOST]),
        **counts(messages),
        "times_ms": times_ms(heard),
        "last_seq": messages[-1].seq,
    }


def kill(daemon: Daemon, pid: int) -> dict[str, Any]:
    """SIGKILL to the camera process: seconds to the camera_lost verdict and to the next inspected frame."""
    killed_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    lost_s: float | None = None
    verdicts: list[VerdictMessage] = []
    while time.monotonic_ns() - killed_ns < LIMIT_S * 1e9:
        stamped = daemon.next(0.5)
        if stamped is None or not isinstance(stamped.message, VerdictMessage):
            continue
        message, after_s = stamped.message, (stamped.received_ns - killed_ns) / 1e9
        verdicts.append(message)
        if message.reason is Reason.CAMERA_LOST:
            lost_s = after_s
        elif lost_s is not None and message.verdict is not Verdict.NOT_INSPECTED:
            return {
                "camera_lost_s": lost_s,
                "inspected_s": after_s,
                "verdicts": len(verdicts),
                "camera_lost_verdicts": sum(m.reason is Reason.CAMERA_LOST for m in verdicts),
                "seq_missing": missing([m.seq for m in verdicts]),
                "last_seq": message.seq,
                "first_seq": verdicts[0].seq,
            }
    raise SystemExit(f"no inspected frame within {LIMIT_S:g} s of the kill")


def kills(daemon: Daemon, count: int, between_s: float, last_seq: int) -> Iterator[dict[str, Any]]:
    """One kill after the other, each after so many seconds of running."""
    for number in range(1, count + 1):
        pid, seqs = watched(daemon, between_s if number > 1 else 1.0)
        found = kill(daemon, pid)
        between = missing([*seqs, found["first_seq"]], first=last_seq + 1)
        last_seq = found["last_seq"]
        yield {"kill": number, **found, "seq_missing": found["seq_missing"] + between}


def watched(daemon: Daemon, seconds: float) -> tuple[int, list[int]]:
    """Listen for so long; the camera process that then runs, and the numbers heard."""
    pid: int | None = None
    seqs: list[int] = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s or pid is None:
        stamped: Stamped | None = daemon.next(0.5)
        if stamped is not None and isinstance(stamped.message, VerdictMessage):
            seqs.append(stamped.message.seq)
        elif stamped is not None:
            pid = (camera_of(stamped) or {})["pid"]
    return pid, seqs


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """The report as plain data."""
    report = new_report()
    source = viky(args.fps)
    with scratch() as work:
        capture(source, work / "good", CAPTURED)
        calibrate("fit", work / "good", "--product", "ball", "--recipes", work / "recipes")
        camera = {
            "name": "cam1",
            "recipe": "ball",
            "source": source.model_dump(mode="json", exclude_none=True),
            "deadline_ms": args.deadline_ms,
        }
        with Daemon(work, work / "recipes", [camera], images={"save": "none"}) as daemon:
            run = steady(daemon, args.seconds)
            faults = list(kills(daemon, args.kills, args.between, run["last_seq"]))
    settings = {name: getattr(args, name) for name in ("fps", "seconds", "deadline_ms", "between")}
    return report | {"settings": settings, "run": run, "kills": faults}


def print_report(report: dict[str, Any]) -> None:
    """For a reader at a terminal."""
    run = dict(report["run"])
    times = run.pop("times_ms")
    print(in_words(report["settings"]))
    table(("without faults", ""), [(name, value) for name, value in run.items() if name != "last_seq"])
    print_times(times)
    names = ("kill", "camera_lost_s", "inspected_s", "camera_lost_verdicts", "seq_missing")
    table(names, [[fault[name] for name in names] for fault in report["kills"]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.genicam", description="A simulated GenICam camera, and its process killed."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="without faults; default: %(default)s")
    parser.add_argument("--fps", type=float, default=20.0, help="1 to 200; default: %(default)s")
    parser.add_argument("--deadline-ms", type=float, default=200.0, help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--between", type=float, default=32.0, help="seconds from one kill to the next; default: %(default)s"
    )
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(argv)
    report = benchmark(args)
    print_report(report)
    finish(report, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
