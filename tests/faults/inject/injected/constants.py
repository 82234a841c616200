"""Shorter limits for a fault that would otherwise wait for minutes: {"HANG_S": 1.0} in line.json."""

from __future__ import annotations

from typing import Any

from injected import orders


def wrap(module: Any) -> None:
    """Set constants of inspectord.examine. Raises AttributeError for one that it does not have."""
    for name, value in orders.line().get("examine", {}).items():
        getattr(module, name)
        setattr(module, name, value)
