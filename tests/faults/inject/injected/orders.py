"""Orders to fail, and what became of them: files in the folder that LINE_FAULTS names.

    line.json            the line: rates, cameras by name (see tests/faults/line.py)
    orders/PLACE/        POINT--ACTION--ID.json   taken once: whoever removes the file carries it out
                         POINT--ACTION--ID.hold   stands until the harness removes it
    truth/               append-only logs, one JSON object a line, one file a process

PLACE is a camera's name, or "daemon". A file's content is the action's parameters.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("LINE_FAULTS", "/nonexistent"))


def take(place: str, point: str) -> dict[str, Any] | None:
    """The first order for this point, with its "action", carried out by this process alone; or None."""
    folder = FOLDER / "orders" / place
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(f"{point}--"))
    except OSError:
        return None
    for name in names:
        try:
            order: dict[str, Any] = json.loads((folder / name).read_text())
            if not name.endswith(".hold"):
                os.unlink(folder / name)
        except OSError:
            continue  # lifted, or taken by another thread, in this moment
        return order | {"action": name.split("--")[1]}
    return None


def line() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "line.json").read_text())
    return found


class Log:
    """Whole lines, appended by one write each: a process killed between two leaves no half line."""

    def __init__(self, kind: str, place: str) -> None:
        folder = FOLDER / "truth"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{kind}-{place}-{time.monotonic_ns():020d}-{os.getpid()}.jsonl"
        self._fd = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        self.write(event="begin", pid=os.getpid(), parent=os.getppid(), place=place)

    def write(self, **fields: Any) -> None:
        line = json.dumps({"t_ns": time.monotonic_ns(), **fields}) + "\n"
        os.write(self._fd, line.encode())


def wait_ms(milliseconds: float) -> None:
    time.sleep(milliseconds / 1000)
