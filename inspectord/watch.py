"""A live view of the verdicts for a person: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from inspectord.client import Back, Client, Event, Gap, Heartbeat, Inspected, Restart, Silence
from inspectord.keys import Keys
from inspectord.messages import Verdict, VerdictMessage

COLOURS = {Verdict.PASS: "green", Verdict.REJECT: "bold red", Verdict.NOT_INSPECTED: "bold yellow"}
STATE_COLOURS = {"ready": "green", "degraded": "bold yellow"}
ROWS = 15


class View:
    """What has been seen so far; rendered anew at each refresh."""

    def __init__(self) -> None:
        self.counts: Counter[Verdict] = Counter()
        self._last: deque[VerdictMessage] = deque(maxlen=ROWS)
        self._notes: deque[str] = deque(maxlen=4)
        self._state: dict[str, Any] = {}
        self._silent = False
        self._heard_s = time.monotonic()

    def take(self, event: Event) -> None:
        match event:
            case Inspected(message):
                self._last.append(message)
                self.counts[message.verdict] += 1
            case Heartbeat(state):
                self._state, self._heard_s = state, time.monotonic()
            case Silence():
                self._silent = True
            case Back():
                self._silent = False
        if not isinstance(event, (Inspected, Heartbeat)):
            self._notes.append(line(event))

    def render(self) -> Group:
        notes = Text("\n".join(self._notes), style="dim")
        return Group(self._headline(), self._cameras(), self._verdicts(), notes)

    def _headline(self) -> Panel:
        age_s = time.monotonic() - self._heard_s
        if self._silent:
            return Panel(
                Text(f"SILENCE for {age_s:.1f} s: treat every part as not inspected", justify="center"),
                style="bold white on red",
            )
        state = self._state.get("state", "connecting")
        counts = "   ".join(f"{verdict} {self.counts[verdict]}" for verdict in Verdict)
        headline = (
            f"{self._state.get('station', '')}  {state}   {counts}   heartbeat {age_s * 1000:.0f} ms ago"
        )
        return Panel(Text(headline), style=STATE_COLOURS.get(state, ""))

    def _cameras(self) -> Table:
        table = Table("camera", "state", "recipe", "verdicts", "not inspected", "restarts", "last error")
        for name, camera in self._state.get("cameras", {}).items():
            shown = (camera[key] for key in ("state", "recipe", "last_seq", "not_inspected", "restarts"))
            table.add_row(name, *(str(value) for value in shown), Text(camera["last_error"] or ""))
        return table

    def _verdicts(self) -> Table:
        table = Table("time", "camera", "seq", "part", "verdict", "reason", "score", "limit", "ms")
        for message in reversed(self._last):
            table.add_row(*_cells(message), style=COLOURS[message.verdict])
        return table


def line(event: Event) -> str:
    """One event as plain text."""
    match event:
        case Inspected(message):
            return "  ".join(_cells(message)) + ("  (historical)" if message.historical else "")
        case Gap(camera, _, first, last):
            return f"LOST  {camera} {first}-{last} can't be had any more: count them as not inspected"
        case Restart(boot_id):
            return f"RESTART  the daemon was started afresh ({boot_id[:8]})"
        case Silence(silent_ms):
            return f"SILENCE  no heartbeat for {silent_ms:.0f} ms: treat every part as not inspected"
        case Back(silent_ms):
            return f"BACK  heartbeats again after {silent_ms:.0f} ms"
    return ""


def watch(verdicts: str, replay: str, keys: Keys | None, camera: str | None) -> int:
    """Until Ctrl-C, or until whoever reads has seen enough. Raises StateError where no daemon answers."""
    with Client(verdicts, replay, keys=keys, camera=camera) as client:
        if sys.stdout.isatty():
            _live(client)
        else:
            _plainly(client)
    return 0


def _plainly(client: Client) -> None:
    for event in client:
        try:
            print(line(event), flush=True)
        except BrokenPipeError:  # as with `| head`; Python would complain again as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


def _live(client: Client) -> None:
    view = View()
    with Live(view.render(), console=Console(), auto_refresh=False, screen=True) as live:
        shown_s = 0.0
        while True:
            event = client.next(0.1)
            if event is not None:
                view.take(event)
            if time.monotonic() - shown_s > 0.1:  # a person reads no faster, and drawing costs a core
                shown_s = time.monotonic()
                live.update(view.render(), refresh=True)


def _cells(message: VerdictMessage) -> tuple[str, ...]:
    score = "-" if message.score is None else f"{message.score:.4g}"
    return (
        message.decided_at[11:23],
        message.camera,
        str(message.seq),
        message.part_id or "-",
        message.verdict,
        message.reason,
        score,
        f"{message.limit:.4g}",
        f"{message.latency_ms:.1f}",
    )
