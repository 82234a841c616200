"""Log lines: JSON for the journal and machines, colours for a person at a terminal."""

from __future__ import annotations

import logging
import sys

import structlog

from inspectord.settings import Logging


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
        logger_factory=structlog.WriteLoggerFactory(),
        cache_logger_on_first_use=True,
    )
