"""Measure the whole path on this box: a real daemon, its camera process, a real subscriber, rising rates.

The camera replays the recipe's golden frames from files in a loop, so it works for every recipe; decoding
costs its process some milliseconds a frame, as a camera's driver would.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from inspectord.client import Client, Heartbeat, Inspected
from inspectord.errors import SettingsError, StateError
from inspectord.keys import LOCAL, Keys, keygen
from inspectord.linux import peak_mb
from inspectord.messages import Verdict, VerdictMessage
from inspectord.prepare import recipe_of
from inspectord.settings import Camera, Settings

SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0)  # of what inference alone would allow
PROBE_HZ, FASTEST_HZ = 5.0, 1000.0
START_S = 60.0
WARM_UP = 5  # verdicts left out: first pages, first kernels
HEADER = (
    f"{'asked':>8} {'seen':>8} {'verdicts':>8} {'NOT_INSP':>8} | {'trigger to subscriber, ms':^26} | "
    f"{'inference':>9} | {'overhead, ms':^17} | {'peak RSS, MB':^15}\n"
    f"{'1/s':>8} {'1/s':>8} {'':>8} {'':>8} | {'p50':>8} {'p99':>8} {'p99.9':>8} | {'p50 ms':>9} | "
    f"{'p50':>8} {'p99':>8} | {'daemon':>7} {'camera':>7}"
)


@dataclass
class Run:
    """One rate; times in ms of shape (verdicts,), inference NaN where there was none."""

    asked_hz: float
    latency_ms: list[float] = field(default_factory=list)
    inference_ms: list[float] = field(default_factory=list)
    fetched_ns: list[int] = field(default_factory=list)
    not_inspected: int = 0
    rss_mb: tuple[float, float] = (0.0, 0.0)  # daemon, camera

    def add(self, message: VerdictMessage, received_ns: int) -> None:
        self.latency_ms.append((received_ns - message.t_fetch_ns) / 1e6)
        self.inference_ms.append(math.nan if message.inference_ms is None else message.inference_ms)
        self.fetched_ns.append(message.t_fetch_ns)
        self.not_inspected += message.verdict is Verdict.NOT_INSPECTED

    @property
    def seen_hz(self) -> float:
        span_s = (self.fetched_ns[-1] - self.fetched_ns[0]) / 1e9
        return (len(self.fetched_ns) - 1) / span_s if span_s > 0 else 0.0

    def line(self) -> str:
        latency, inference = np.array(self.latency_ms), np.array(self.inference_ms)
        inferred = ~np.isnan(inference)
        p50, p99, p999 = np.percentile(latency, (50, 99, 99.9))
        middle, over50, over99 = math.nan, math.nan, math.nan  # where every part was late
        if inferred.any():
            middle = np.median(inference[inferred])
            over50, over99 = np.percentile((latency - inference)[inferred], (50, 99))
        return (
            f"{self.asked_hz:8.1f} {self.seen_hz:8.1f} {len(latency):8d} {self.not_inspected:8d} | "
            f"{p50:8.2f} {p99:8.2f} {p999:8.2f} | {middle:9.2f} | "
            f"{over50:8.2f} {over99:8.2f} | {self.rss_mb[0]:7.0f} {self.rss_mb[1]:7.0f}"
        )


def bench(settings: Settings, camera_name: str | None, seconds: float) -> int:
    """Print a table; exit code 0. Raises InspectordError where the daemon does not come up."""
    camera = _chosen(settings, camera_name)
    with tempfile.TemporaryDirectory(prefix="inspectord-bench-") as folder:
        work = Path(folder)
        _copy_golden(settings, camera, work / "frames")
        keygen(work / "keys", LOCAL)
        probe = _measure(settings, camera, work, PROBE_HZ, 2.0 + WARM_UP / PROBE_HZ)
        capacity_hz = _capacity_hz(probe, camera)
        print(f"camera {camera.name}, deadline {camera.deadline_ms:g} ms, {seconds:g} s at each rate")
        print(HEADER)
        best = 0.0
        for share in SHARES:
            run = _measure(settings, camera, work, round(share * capacity_hz, 1), seconds)
            print(run.line(), flush=True)
            if run.not_inspected == 0:
                best = max(best, run.seen_hz)
    print(f"highest rate without a NOT_INSPECTED: {best:.1f} parts/s ({best * 60:.0f} a minute)")
    return 0


def _capacity_hz(probe: Run, camera: Camera) -> float:
    """Frames a second that inference alone would allow. Raises SettingsError where none was in time."""
    if np.isnan(probe.inference_ms).all():
        raise SettingsError(
            f"no frame at {PROBE_HZ:g} a second was inspected within {camera.deadline_ms:g} ms; "
            f"raise deadline_ms of camera {camera.name}, or fit a smaller model"
        )
    return min(FASTEST_HZ, 1000 / max(0.1, float(np.nanmedian(probe.inference_ms))))


def _chosen(settings: Settings, name: str | None) -> Camera:
    for camera in settings.cameras:
        if name is None or camera.name == name:
            return camera
    names = ", ".join(camera.name for camera in settings.cameras)
    raise SettingsError(f"no camera {name!r} in the configuration; there is {names}")


def _copy_golden(settings: Settings, camera: Camera, folder: Path) -> None:
    folder.mkdir()
    for golden in recipe_of(camera, settings).golden():
        shutil.copy(golden.path, folder)


def _measure(settings: Settings, camera: Camera, work: Path, rate_hz: float, seconds: float) -> Run:
    """Start a daemon of its own, count for so many seconds, stop it."""
    config = _config(settings, camera, work, rate_hz)
    path, log_path = work / "bench.toml", work / "daemon.log"
    path.write_text(tomli_w.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "inspectord", "run", "--config", str(path)]
    with log_path.open("wb") as log_file:
        daemon = subprocess.Popen(command, stdout=log_file, stderr=subprocess.STDOUT)
    try:
        keys = Keys.load(work / "keys") if settings.security.mode == "curve" else None
        with _connected(daemon, config["publish"], keys, log_path) as client:
            return _count(client, daemon.pid, rate_hz, seconds)
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _config(settings: Settings, camera: Camera, work: Path, rate_hz: float) -> dict[str, Any]:
    source = {"kind": "folder", "path": str(work / "frames"), "rate_hz": rate_hz, "loop": True}
    inference = settings.inference.model_dump(mode="json", exclude_none=True)
    security = settings.security.model_dump(mode="json", exclude_none=True)
    return {
        "station": "bench",
        "state_dir": str(work / "state"),
        "recipes_dir": str(settings.recipes_dir),
        "publish": {"verdicts": free_endpoint(), "replay": free_endpoint()},
        "security": security | {"keys_dir": str(work / "keys")},  # keys of its own, of the mode that is used
        "images": settings.images.model_dump(mode="json"),
        "logging": {"format": "json"},
        "inference": {"cache_dir": str(work / "cache")} | inference,
        "cameras": [camera.model_dump(mode="json", exclude={"source"}) | {"source": source}],
    }


def free_endpoint() -> str:
    """On this machine, below the ports of outgoing connections: ours dials before the daemon listens."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"tcp://127.0.0.1:{port}"


def _connected(
    daemon: subprocess.Popen[bytes], publish: dict[str, str], keys: Keys | None, log_path: Path
) -> Client:
    """A client of the daemon once it answers. Raises StateError with the end of its log where it doesn't."""
    client = Client(publish["verdicts"], publish["replay"], keys=keys, connect_s=0.5)
    end_s = time.monotonic() + START_S
    while daemon.poll() is None and time.monotonic() < end_s:
        try:
            client.start()
            return client
        except StateError:
            continue
    tail = log_path.read_text(errors="replace").strip().splitlines()[-1:]
    raise StateError(f"the daemon did not start: {' '.join(tail) or 'it said nothing'}")


def _count(client: Client, daemon_pid: int, rate_hz: float, seconds: float) -> Run:
    """So many seconds, from the first verdict on: the camera process starts last."""
    run, left_out = Run(rate_hz), WARM_UP
    end_s = time.monotonic() + START_S
    camera_pid: int | None = None
    while time.monotonic() < end_s:
        event = client.next(0.5)
        received_ns = time.monotonic_ns()
        if isinstance(event, Inspected) and left_out == WARM_UP:
            end_s = time.monotonic() + seconds
        match event:
            case Inspected(message) if left_out > 0 or message.historical:
                left_out -= 1
            case Inspected(message):
                run.add(message, received_ns)
            case Heartbeat(state):
                camera_pid = next(iter(state["cameras"].values()))["pid"]
    run.rss_mb = peak_mb(daemon_pid), peak_mb(camera_pid) if camera_pid else 0.0
    if len(run.latency_ms) < 2:
        raise StateError(f"no verdicts came at {rate_hz:g} frames a second; try with more --seconds")
    return run
