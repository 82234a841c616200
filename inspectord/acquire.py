"""The camera process: one source of frames into one ring, and short status lines to the daemon.

The genicam binding holds the interpreter's lock while it waits for a frame, so acquisition has a process of
its own with nothing else in it. Started by inspectord.camera; not meant to be run by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace

import cv2
from pydantic import TypeAdapter

from inspectord.control import Control
from inspectord.errors import InspectordError
from inspectord.frame import FrameStatus
from inspectord.linux import die_with_parent
from inspectord.ring import Ring
from inspectord.settings import Source
from inspectord.sources import FrameSource, Item, open_source

WAIT_S = 0.2  # longest sleep between two looks at the control socket
BEAT_S = 0.25
IDLE_S = 1.0  # without a trigger for so long: armed, no longer running
# Closing a lost camera frees its control channel, but a driver may hang in it; SIGALRM then ends the process.
TEARDOWN_LIMIT_S = 3


@dataclass
class Counters:
    frames: int = 0  # triggers of any status
    faulty: int = 0  # of these without pixels: lost, incomplete, unreadable, wrong shape
    displaced: int = 0  # lost their pixels to a full ring


class Acquisition:
    """Moves frames from the source to the ring until told to stop, and says so twice a second or more."""

    def __init__(self, source: FrameSource, ring: Ring, control: Control) -> None:
        self._source, self._ring, self._control = source, ring, control
        self._counters = Counters()
        self._last_beat_s = self._last_frame_s = -1e9

    def run(self) -> None:
        self._control.send("started")
        while not self._control.closed and not self._source.ended:
            self._beat()
            # An empty ring: a frame that had to queue would use up its deadline waiting for its turn.
            if self._source.backpressure and not self._ring.wait_free(WAIT_S, self._ring.slots):
                continue
            item = self._source.next(WAIT_S)
            if item is not None:
                self._put(item)
        self._beat(now=True)
        if self._source.ended:
            self._control.send("ended")

    def _put(self, item: Item) -> None:
        header, pixels = item
        if header.trigger_id < 0:  # the camera does not count triggers, so this count stands in
            header = replace(header, trigger_id=self._ring.last_trigger + 1)
        displaced = self._ring.put(header, pixels)
        # The kernel may have queued the daemon on this very core, behind the decoding of the next frame:
        # measured at 50 parts/s, it takes a frame 1.4 ms after put() without this line, 0.4 ms with it.
        os.sched_yield()
        self._counters.frames += 1
        self._counters.faulty += header.status is not FrameStatus.OK
        self._counters.displaced += displaced is not None
        self._last_frame_s = time.monotonic()
        if self._counters.frames == 1:
            self._beat(now=True)

    def _beat(self, now: bool = False) -> None:
        time_s = time.monotonic()
        if now or time_s - self._last_beat_s >= BEAT_S:
            self._last_beat_s = time_s
            self._control.send("beat", state=self._state(time_s), **vars(self._counters))

    def _state(self, time_s: float) -> str:
        if self._source.waits_for_trigger and time_s - self._last_frame_s > IDLE_S:
            return "armed"
        return "running" if self._counters.frames else "starting"


class ControlHandler(logging.Handler):
    """Log lines go to the daemon, which has the format; one kind of line at most every 10 s."""

    def __init__(self, control: Control) -> None:
        super().__init__(logging.INFO)
        self._control = control
        self._sent_s: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        kind, time_s = str(record.msg), time.monotonic()
        if time_s - self._sent_s.get(kind, -1e9) >= 10.0:
            self._sent_s[kind] = time_s
            self._control.send("log", level=record.levelname.lower(), text=record.getMessage())


def main(argv: list[str] | None = None) -> int:
    """Run until the control socket closes, SIGTERM, the source's end or loss; returns the exit code."""
    options = _parser().parse_args(argv)
    die_with_parent()
    control = Control.attach(options.control_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the daemon decides
    signal.signal(signal.SIGTERM, lambda *_: control.stop())
    cv2.setNumThreads(1)  # the cores belong to inference
    logging.getLogger("inspectord").addHandler(ControlHandler(control))
    logging.getLogger("inspectord").setLevel(logging.INFO)
    settings = control.receive_settings()
    if settings is None:
        return 0
    return _acquire(settings, Ring.attach(options.memory_fd, options.event_fd), control)


def _acquire(settings: str, ring: Ring, control: Control) -> int:
    with contextlib.ExitStack() as teardown:
        try:
            source: Source = TypeAdapter(Source).validate_json(settings)
            frames = teardown.enter_context(open_source(source, ring.frame_shape, ring.last_trigger))
            Acquisition(frames, ring, control).run()
        except Exception as error:  # told before the source is closed, as a driver may hang in that
            signal.alarm(TEARDOWN_LIMIT_S)
            return _report(error, control)
    return 0


def _report(error: Exception, control: Control) -> int:
    """Tell the daemon why; returns the exit code."""
    if isinstance(error, InspectordError):
        control.send("lost", error=str(error))
        return error.exit_code
    traceback.print_exc()
    control.send("lost", error=f"fault in the camera process, {type(error).__name__}: {error}")
    return InspectordError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inspectord.acquire", description=__doc__)
    for name in ("memory", "event", "control"):
        parser.add_argument(f"--{name}-fd", type=int, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
