"""A real daemon for a benchmark, what a subscriber hears of it, and when."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tomli_w
import zmq

from benchmarks._common import environment, percentiles, table
from inspectord.bench import free_endpoint
from inspectord.keys import LOCAL, Keys, keygen
from inspectord.messages import HEARTBEAT_SCHEMA, VerdictMessage, from_table, unpack

START_S = 60.0  # for a daemon to compile and prove its recipe
STOP_S = 30.0


@dataclass(frozen=True)
class Stamped:
    """One message: a verdict, or the table of a heartbeat; received_ns is CLOCK_MONOTONIC at receipt."""

    received_ns: int
    message: VerdictMessage | dict[str, Any]


class Daemon:
    """`inspectord run` in a process of its own; the subscriber is there before it, so it hears every verdict.

    Its messages stay on this machine, so they are plain unless curve asks for keys and encryption.

    with Daemon(folder, recipes, [camera]) as daemon:
        for stamped in daemon.listen(seconds=30):
            ...
    """

    def __init__(
        self, folder: Path, recipes: Path, cameras: list[dict[str, Any]], curve: bool = False, **more: Any
    ) -> None:
        keygen(folder / "keys", LOCAL)
        self._keys = Keys.load(folder / "keys") if curve else None
        self._log_path, self._config_path = folder / "daemon.log", folder / "inspectord.toml"
        self._endpoint = free_endpoint()
        config = {
            "station": "bench",
            "state_dir": str(folder / "state"),
            "recipes_dir": str(recipes),
            "publish": {"verdicts": self._endpoint, "replay": free_endpoint()},
            "security": {"mode": "curve" if curve else "plain", "keys_dir": str(folder / "keys")},
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
        if self._keys is not None:
            self._keys.apply(self._socket)
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


def times_ms(timed: list[tuple[int, VerdictMessage]]) -> dict[str, dict[str, float]]:
    """Percentiles of overhead and inference over what was inferred, of latency over everything."""
    latency = [(received_ns - message.t_fetch_ns) / 1e6 for received_ns, message in timed]
    inferred = [
        (total, message.inference_ms, message.latency_ms)
        for total, (_, message) in zip(latency, timed, strict=True)
        if message.inference_ms is not None
    ]
    return {
        "overhead": percentiles([total - inference for total, inference, _ in inferred]),
        "  up to the decision": percentiles([decided - inference for _, inference, decided in inferred]),
        "  from there to the subscriber": percentiles([total - decided for total, _, decided in inferred]),
        "inference": percentiles([inference for _, inference, _ in inferred]),
        "trigger to verdict": percentiles(latency),
    }


def print_times(times: dict[str, dict[str, float]]) -> None:
    """times_ms() as a table."""
    names = list(times["overhead"])
    table(("ms", *names), [(what, *(values[name] for name in names)) for what, values in times.items()])
