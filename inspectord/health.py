"""Are all threads alive? Beats for the watchdog, and systemd's notification protocol."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import structlog

PATIENCE_S = 10.0  # a thread that has not beaten for so long is stuck
LOAD_PATIENCE_S = 300.0  # for a model to be compiled; longer is a device that hangs
BACKOFF_CEILING_S = 10.0
log = structlog.get_logger()


class Health:
    """Beats by name; a thread that stops beating, or dies, is named here."""

    def __init__(self) -> None:
        self._beats: dict[str, float] = {}
        self._excused: set[str] = set()
        self.failure: str | None = None
        self._loading: dict[int, float] = {}  # thread -> since when

    def beat(self, name: str) -> None:
        self._beats[name] = time.monotonic()
        self._excused.discard(name)

    def excuse(self, name: str) -> None:
        """Until the next beat: a call to the disk may hang for long, and no restart would mend that."""
        self._excused.add(name)

    def forget(self, name: str) -> None:
        self._beats.pop(name, None)

    def fail(self, what: str) -> None:
        """The daemon can't go on: the main loop ends with this reason, and systemd starts it afresh."""
        self.failure = self.failure or what

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """While this thread compiles a model, which takes memory as nothing else here does."""
        self._loading[threading.get_ident()] = time.monotonic()
        try:
            yield
        finally:
            self._loading.pop(threading.get_ident(), None)

    @property
    def is_loading(self) -> bool:
        return bool(self._loading)

    def ages_s(self) -> dict[str, float]:
        """Seconds since the last beat, by name."""
        now_s = time.monotonic()
        return {name: now_s - beat for name, beat in sorted(list(self._beats.items()))}  # noqa: C414, others add

    def stuck(self) -> list[str]:
        """Names that have not beaten within their patience: the watchdog is then no longer fed."""
        ages_s = self.ages_s()
        found = [name for name, age_s in ages_s.items() if age_s > PATIENCE_S and name not in self._excused]
        began_s = min(list(self._loading.values()), default=math.inf)
        return found + ["loading"] * (time.monotonic() - began_s > LOAD_PATIENCE_S)


def spawn(name: str, target: Callable[[], None], health: Health, watched: bool = True) -> threading.Thread:
    """A started thread whose unexpected end is logged and fails the daemon, never silent.

    A watched one must beat by its name.
    """

    def guarded() -> None:
        try:
            if watched:
                health.beat(name)
            target()
            health.forget(name)
        except Exception as error:
            log.exception("thread died", thread=name)
            health.fail(f"thread {name} died: {error!r}")

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


def backoff_s(failures: int) -> float:
    """Wait before the next try: none after the first failure, then 0.5 s, 1 s, ... up to the ceiling."""
    return 0.0 if failures <= 1 else min(BACKOFF_CEILING_S, 0.5 * 2.0 ** min(failures - 2, 20))


def notify(*lines: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1.0)  # a manager that reads nothing must not hold up the main loop
        sender.sendto("\n".join(lines).encode(), address)
