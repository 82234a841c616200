"""Are all threads alive? Beats for the watchdog, and systemd's notification protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()


class Health:
    """Beats by name; a thread that stops beating, or dies, is named here."""

    def __init__(self) -> None:
        self._beats: dict[str, float] = {}
        self.failure: str | None = None

    def beat(self, name: str) -> None:
        self._beats[name] = time.monotonic()

    def forget(self, name: str) -> None:
        self._beats.pop(name, None)

    def fail(self, what: str) -> None:
        """The daemon can't go on: the main loop ends with this reason, and systemd starts it afresh."""
        self.failure = self.failure or what

    def stale(self, limit_s: float) -> list[str]:
        """Names that have not beaten for limit_s."""
        oldest = time.monotonic() - limit_s
        return sorted(name for name, beat in list(self._beats.items()) if beat < oldest)


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


def notify(*lines: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(lines).encode(), address)
