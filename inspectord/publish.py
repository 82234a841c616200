"""The publisher: verdicts and heartbeats to every subscriber, never waiting for any of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import structlog
import zmq

from inspectord.health import Health, spawn
from inspectord.messages import (
    VerdictMessage,
    check_encoding,
    encode,
    heartbeat_topic,
    pack,
    verdict_topic,
)
from inspectord.rates import Rates
from inspectord.settings import Publish
from inspectord.sockets import bound, turn_out
from inspectord.zap import Gate, peer_of

LISTEN_S, LISTEN_AT_ONCE = 0.02, 200  # one subscription takes libzmq up to 0.1 ms
# A gateway needs a handful. libzmq keeps them all, in some 100 bytes for each letter of each topic.
SUBSCRIPTIONS_PER_S, SUBSCRIPTIONS_AT_ONCE, MOST_SUBSCRIPTIONS = 10.0, 200, 10_000
log = structlog.get_logger()


class History:
    """The last verdicts of one camera as encoded bytes; one writer, readers without a lock."""

    def __init__(self, depth: int) -> None:
        self._places: list[tuple[int, bytes] | None] = [None] * depth
        self.last_seq = 0

    def put(self, seq: int, payload: bytes) -> None:
        self._places[seq % len(self._places)] = (seq, payload)
        self.last_seq = seq

    def get(self, seq: int) -> bytes | None:
        """The payload, or None where it is too old or not yet there."""
        place = self._places[seq % len(self._places)]
        return place[1] if place is not None and place[0] == seq else None


class Publisher:
    """One XPUB socket for all cameras' threads. XPUB, because it tells who subscribes."""

    def __init__(
        self, context: zmq.Context[Any], settings: Publish, cameras: Iterable[str], gate: Gate
    ) -> None:
        check_encoding(settings.encoding)
        self.histories = {camera: History(settings.replay_depth) for camera in cameras}
        self.subscriptions = 0
        self.send_errors = 0
        self._encoding = settings.encoding
        self._lock = threading.Lock()
        self._gate, self._epoch = gate, gate.epoch
        self._rates = Rates(SUBSCRIPTIONS_PER_S, SUBSCRIPTIONS_AT_ONCE)
        with ExitStack() as stack:
            self._socket = bound(context, zmq.XPUB, settings.verdicts, "publish.verdicts", gate, stack)
            self._opened = stack.pop_all()

    def send(self, message: VerdictMessage) -> None:
        """Publish one verdict and keep it for replay. Raises only where it can't be encoded."""
        payload = encode(message, self._encoding)
        topic = verdict_topic(message.station, message.camera, message.verdict)
        with self._lock:
            # Kept first: whoever sees this verdict may at once ask for those before it.
            self.histories[message.camera].put(message.seq, payload)
            self._send([topic, payload])

    def send_heartbeat(self, table: dict[str, Any]) -> None:
        frames = [heartbeat_topic(table["station"]), pack(table, self._encoding)]
        with self._lock:
            self._send(frames)

    def listen(self) -> None:
        """Take in who subscribes, and turn everybody out where one floods us or a key was removed."""
        with self._lock:
            for _ in range(LISTEN_AT_ONCE):  # bounded: a flood of subscriptions must not hold the lock
                try:
                    self._count(self._socket.recv(zmq.NOBLOCK, copy=False))
                except zmq.ZMQError:
                    break
        if self._epoch != self._gate.epoch:
            self._epoch = self._gate.epoch
            turn_out(self._socket, "publish.verdicts", self._lock)

    def close(self) -> None:
        with self._lock:
            self._opened.close()

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self.send_errors += 1
            log.error("a message was not sent; subscribers will ask for it again", error=str(error))

    def _count(self, change: zmq.Frame) -> None:
        kind = change.bytes[:1]
        # libzmq hands on the end of a subscription that never was.
        self.subscriptions = max(0, self.subscriptions + {b"\x01": 1, b"\x00": -1}.get(kind, 0))
        if kind == b"\x01" and not self._rates.take(peer := peer_of(change)):
            self._gate.turn_out(f"{peer} floods us with subscriptions", peer)
        elif self.subscriptions > MOST_SUBSCRIPTIONS:
            self._gate.turn_out(f"there are more than {MOST_SUBSCRIPTIONS} subscriptions")


class Heart:
    """A heartbeat every period_ms: their absence tells a line that silence is no pass."""

    def __init__(
        self, publisher: Publisher, period_ms: int, describe: Callable[[], dict[str, Any]], health: Health
    ) -> None:
        self._publisher, self._describe, self._health = publisher, describe, health
        self._period_s = period_ms / 1000
        self._stopping = threading.Event()
        self._thread = spawn("heartbeat", self._run, health)

    def _run(self) -> None:
        due_s = time.monotonic() + self._period_s
        while not self._stopping.wait(min(LISTEN_S, max(0.0, due_s - time.monotonic()))):
            self._health.beat("heartbeat")
            self._publisher.listen()
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + self._period_s
                self._publisher.send_heartbeat(self._describe())

    def close(self) -> None:
        """Stops, after one last heartbeat that says so."""
        self._stopping.set()
        self._thread.join(5)
        self._publisher.send_heartbeat(self._describe())
