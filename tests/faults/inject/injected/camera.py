"""In the camera process: the scripted line in the place of the `line` source, and what was handed out.

The log is the ground truth: every header that the source gave to the product, written before it was given.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from injected import orders, parts
from inspectord.errors import SourceError
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.sources.base import Item, Shape, fitted

PAST_NS = 3_600_000_000_000


def wrap(module: Any) -> None:
    """Replace open_source() of inspectord.sources."""
    real = module.open_source

    def open_source(source: Any, frame_shape: Shape | None, done: int = 0) -> Recorded:
        name, number, camera = place_of(source)
        if source.kind == "line":
            return Recorded(ScriptedLine(source, frame_shape, name, number, camera), name)
        from injected import harvest

        harvest.begin(name, number, next_number(name))
        return Recorded(real(source, frame_shape, done), name)

    module.open_source = open_source


def place_of(source: Any) -> tuple[str, int, dict[str, Any]]:
    """The camera's name, its number and its entry in line.json, known by a source's seed or serial."""
    key = source.seed if source.kind == "line" else source.serial
    for number, (name, camera) in enumerate(orders.line()["cameras"].items()):
        if camera["key"] == key:
            return name, number, camera
    raise LookupError(f"line.json has no camera {key!r}")


def next_number(name: str) -> int:
    """One more than the last part of all processes before: a line goes on, whoever looks at it."""
    last = 0
    for path in (orders.FOLDER / "truth").glob(f"*-{name}-*.jsonl"):
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16384))
            for line in log.read().splitlines():
                if line.startswith(b'{"t_ns"') and line.endswith(b"}"):
                    last = max(last, json.loads(line).get("number") or 0)
    return last + 1


class Recorded:
    """Any source; what it hands out is written down first, and the frame's code is read from its pixels."""

    def __init__(self, source: Any, name: str) -> None:
        self._source, self._name = source, name
        self._log = orders.Log("camera", name)

    waits_for_trigger = property(lambda self: self._source.waits_for_trigger)
    backpressure = property(lambda self: self._source.backpressure)
    ended = property(lambda self: self._source.ended)

    def __enter__(self) -> Recorded:
        fail(orders.take(self._name, "open"))
        self._source.__enter__()
        self._log.write(event="opened")
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # Written by an orderly end only: without it, the last header may not have reached the ring.
        self._log.write(event="closed", error=None if error is None else str(error))
        self._source.__exit__(kind, error, trace)

    def next(self, timeout_s: float) -> Item | None:
        item = self._source.next(timeout_s)
        if item is not None:
            header, pixels = item
            self._log.write(
                event="handed",
                number=getattr(self._source, "number_of", lambda _: None)(header),
                code=parts.read(pixels),
                status=FrameStatus(header.status).name,
                **{key: getattr(header, key) for key in HEADER},
            )
            if orders.take(self._name, "die_handed"):
                os.kill(os.getpid(), 9)
        return item


HEADER = ("frame_id", "trigger_id", "encoder", "part_id", "exposed_ns", "fetched_ns")


def fail(order: dict[str, Any] | None) -> None:
    """Carry out the actions that any point knows: raise, hang, exit, crash."""
    match order and order["action"]:
        case "raise":
            kinds = {"SourceError": SourceError, "RuntimeError": RuntimeError, "MemoryError": MemoryError}
            raise kinds[order.get("kind", "SourceError")]("fault: camera lost")
        case "hang":
            time.sleep(order.get("seconds", 3600))
        case "exit":
            os._exit(order.get("code", 3))
        case "crash":
            os.kill(os.getpid(), 11)


class ScriptedLine:
    """Parts at an even rate on the monotonic clock, as a camera sees them; orders at "next" bend it."""

    backpressure = ended = False

    def __init__(
        self, source: Any, shape: Shape | None, name: str, number: int, camera: dict[str, Any]
    ) -> None:
        self._rate_hz, self._shape = source.rate_hz, shape or parts.SHAPE
        self._name, self._camera = name, number
        self.waits_for_trigger = bool(camera.get("triggered"))
        self._buffer = np.empty(parts.SHAPE, np.uint8)
        self._waiting: deque[Callable[[], Item]] = deque()
        self._changes: deque[Callable[[FrameHeader], FrameHeader]] = deque()
        self._burst, self._factor = 0, 1.0
        self._id_shift = 0

    def __enter__(self) -> ScriptedLine:
        self._number = next_number(self._name) - 1
        self._due_s = time.monotonic() + 1 / self._rate_hz
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    def number_of(self, header: FrameHeader) -> int:
        return header.trigger_id

    def next(self, timeout_s: float) -> Item | None:
        self._obey(orders.take(self._name, "next"))
        if self._waiting:
            return self._waiting.popleft()()
        left_s = self._due_s - time.monotonic()
        if left_s > 0:
            time.sleep(min(left_s, timeout_s))
        if left_s > timeout_s:
            return None
        self._burst -= self._burst > 0
        self._due_s += 1 / (self._rate_hz * (self._factor if self._burst else 1))
        # A line does not make up for the time that its camera was stopped: those parts went by unseen.
        self._due_s = max(self._due_s, time.monotonic() - 0.2)
        return self._part()

    def _obey(self, order: dict[str, Any] | None) -> None:
        if order is None:
            return
        count = order.get("count", 1)
        match order["action"]:
            case "stop":
                self._due_s = time.monotonic() + order["seconds"]
            case "burst":
                self._burst, self._factor = count, order.get("factor", 5.0)
                self._due_s = time.monotonic()
            case "status":  # lost, incomplete, unreadable: a header without pixels
                status = FrameStatus[order["status"]]
                self._waiting.extend([lambda: (self._header(status), None)] * count)
            case "wrong_size":
                pixels = np.full(order.get("shape", (32, 48, 1)), 128, np.uint8)
                self._waiting.extend([lambda: fitted(self._header(), pixels, self._shape)] * count)
            case "exposed":  # no clock (0), or one that runs backwards
                exposed_ns = order["ns"]
                self._changes.extend([lambda header: replace(header, exposed_ns=exposed_ns)] * count)
            case "ids_from":
                self._id_shift = order["frame_id"] - self._number - 1
            case _:
                fail(order)

    def _part(self) -> Item:
        header = self._header()
        self._buffer[:] = parts.draw(self._camera, header.trigger_id)  # overwritten by the next one
        return header, self._buffer

    def _header(self, status: FrameStatus = FrameStatus.OK) -> FrameHeader:
        self._number += 1
        now_ns = time.monotonic_ns()
        header = FrameHeader(
            status,
            frame_id=self._number + self._id_shift,
            trigger_id=self._number,
            encoder=self._number * 1000,
            part_id=f"part-{self._number:07d}",
            exposed_ns=now_ns,
            fetched_ns=now_ns,
            simulated=True,
        )
        return self._changes.popleft()(header) if self._changes else header
