"""Log lines: JSON for the journal and machines, colours for a person at a terminal."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from typing import TextIO

import structlog

from inspectord.settings import Logging


class Lines:
    """Standard output for threads that must not wait: whoever reads it may be stopped, or its disk full.

    write() takes whole lines; those beyond the depth are dropped and counted in the next line that goes out.
    """

    def __init__(self, out: TextIO | None = None, depth: int = 2000) -> None:
        self._out = out
        self._queue: queue.Queue[str] = queue.Queue(depth)
        self._dropped = 0
        self._writer: threading.Thread | None = None

    def write(self, text: str) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._run, name="log", daemon=True)
            self._writer.start()
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Called after each line; the writer flushes."""

    def drain(self, limit_s: float = 2.0) -> None:
        """Until everything is written, or limit_s is over."""
        end_s = time.monotonic() + limit_s
        while self._queue.unfinished_tasks and time.monotonic() < end_s:
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            text = self._queue.get()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                text = f'{{"event": "log lines dropped, nobody read them", "dropped": {dropped}}}\n{text}'
            try:
                out = self._out or sys.stdout
                out.write(text)
                out.flush()
            except (OSError, ValueError):  # a closed pipe: the daemon goes on without a log
                pass
            finally:
                self._queue.task_done()


LINES = Lines()


def configure(settings: Logging) -> None:
    """Write to stdout as the settings ask; "auto" means console on a terminal, JSON otherwise."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stdout.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if console:
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=LINES),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
