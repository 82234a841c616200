"""What a PLC gateway would see: a plain subscriber with an endless queue, and the product's own client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from inspectord.client import Client, Event
from inspectord.errors import MessageError, StateError
from inspectord.keys import Keys
from inspectord.messages import HEARTBEAT_SCHEMA, VerdictMessage, from_table, unpack
from tests.faults.evidence import Heard


class Recorder:
    """Subscribes before the daemon starts and stays through all its lives; everything is kept."""

    def __init__(
        self, verdicts: str, replay: str, client_timeout_ms: float = 1000.0, keys: Keys | None = None
    ) -> None:
        self.heard: list[Heard] = []
        self.beats: list[tuple[int, dict[str, Any]]] = []
        self.events: list[tuple[int, Event]] = []
        self.strays: list[str] = []
        self._verdicts, self._replay, self._timeout_ms, self._keys = verdicts, replay, client_timeout_ms, keys
        self._news = threading.Condition()
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._listen, self._follow)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(10)

    @property
    def state(self) -> dict[str, Any]:
        """The newest heartbeat, or {} before the first."""
        return self.beats[-1][1] if self.beats else {}

    def wait(self, done: Callable[[], Any], timeout_s: float, what: str = "") -> float:
        """Seconds until done() was true; asked on every message. Raises AssertionError after timeout_s."""
        began_s = time.monotonic()
        with self._news:
            while not done():
                left_s = began_s + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise AssertionError(f"not within {timeout_s} s: {what or done.__name__}")
                self._news.wait(min(left_s, 0.1))
        return time.monotonic() - began_s

    def _listen(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        subscriber = context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.RCVHWM, 0)
        if self._keys is not None:
            self._keys.apply(subscriber)
        subscriber.setsockopt(zmq.RECONNECT_IVL, 10)  # ms; subscribed long before the first frame
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(self._verdicts)
        while not self._closing.is_set():
            if subscriber.poll(100):
                frames = subscriber.recv_multipart()
                self._keep(time.monotonic_ns(), frames)
        context.destroy(linger=0)

    def _keep(self, t_ns: int, frames: list[bytes]) -> None:
        try:
            table = unpack(frames[-1])
            with self._news:
                if table.get("schema") == HEARTBEAT_SCHEMA:
                    self.beats.append((t_ns, table))
                else:
                    self.heard.append(Heard(t_ns, frames[0].decode(), from_table(table)))
                self._news.notify_all()
        except (MessageError, LookupError, TypeError, UnicodeDecodeError) as error:
            self.strays.append(f"{frames!r:.200}: {error}")

    def _follow(self) -> None:
        """The client of the product; it can't start before a daemon answers."""
        client = Client(
            self._verdicts,
            self._replay,
            connect_s=0.3,
            heartbeat_timeout_ms=self._timeout_ms,
            from_start=True,
            keys=self._keys,
        )
        while not self._closing.is_set():
            try:
                client.start()
                break
            except StateError:
                continue
        else:
            return
        while not self._closing.is_set():
            event = client.next(0.1)
            if event is not None:
                self.events.append((time.monotonic_ns(), event))
        client.close()

    def verdicts(self, camera: str | None = None, boot_id: str | None = None) -> list[VerdictMessage]:
        return [
            each.message
            for each in self.heard
            if camera in (None, each.message.camera) and boot_id in (None, each.message.boot_id)
        ]
