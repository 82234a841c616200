"""The daemon as a process: its signals, its limits, its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import cv2
import structlog
import zmq

from inspectord.inspect import left_behind

FEED_S = 1.0  # between two signs of life to systemd, or a third of WATCHDOG_USEC where that is less
TERM_S = 5.0  # for ZeroMQ to send what it still holds
log = structlog.get_logger()


class Signals:
    """SIGTERM and SIGINT ask to stop, SIGHUP to reload; handlers only set flags: all else is unsafe there."""

    def __init__(self) -> None:
        self.stop = self.reload = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def _on_stop(self, *_: Any) -> None:
        self.stop = True

    def _on_reload(self, *_: Any) -> None:
        self.reload = True


def tune_process() -> None:
    # A thread back from inference waits for the interpreter's lock up to one interval; the default is 5 ms.
    sys.setswitchinterval(0.0005)
    cv2.setNumThreads(1)  # the cores belong to inference


def feed_period_s() -> float:
    """How often systemd wants a sign of life: three times within WATCHDOG_USEC, which its unit sets."""
    asked = os.environ.get("WATCHDOG_USEC", "")
    return min(FEED_S, int(asked) / 3e6) if asked.isdigit() and int(asked) > 0 else FEED_S


def end_messaging(context: zmq.Context[Any]) -> None:
    """Send what is still queued and end; a context that can't is left behind rather than waited for."""
    ending = threading.Thread(target=context.term, name="zmq-end", daemon=True)
    ending.start()
    ending.join(TERM_S)
    if ending.is_alive():
        log.error("ZeroMQ did not end in time; what it still held is lost", seconds=TERM_S)
        left_behind.append(None)


def leave(exit_code: int) -> None:
    """Exit without taking anything apart: destroying a hung model would wait for it for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
