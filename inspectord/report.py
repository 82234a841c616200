"""What the daemon says of itself: heartbeats, `inspectord status`, and systemd's status line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from inspectord import __version__
from inspectord.health import Health
from inspectord.lane import Lane
from inspectord.messages import HEARTBEAT_SCHEMA
from inspectord.pauses import Pauses
from inspectord.settings import Settings
from inspectord.station import Outlets
from inspectord.zap import Gate


@dataclass
class Report:
    """Read by any thread; only the main loop sets the phase."""

    settings: Settings
    boot_id: str
    lanes: Sequence[Lane]
    outlets: Outlets
    gate: Gate
    health: Health
    pauses: Pauses
    phase: Literal["starting", "ready", "stopping"] = "starting"
    began_s: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> str:
        """The phase; a ready daemon that a person should look at is degraded."""
        return "degraded" if self.phase == "ready" and self.troubles else self.phase

    @property
    def troubles(self) -> list[str]:
        """What a person should look at, in words; empty where all is well."""
        found = [trouble for lane in self.lanes for trouble in lane.troubles]
        if self.outlets.journal.failing:
            found.append(f"journal: {self.outlets.journal.failing}")
        if self.outlets.journal.set_aside:
            found.append(f"journal: {self.outlets.journal.set_aside}")
        if self.outlets.images is not None and self.outlets.images.failing:
            found.append(f"reject images: {self.outlets.images.failing}")
        return found + [f"thread {name} is stuck" for name in self.health.stuck()]

    @property
    def totals(self) -> dict[str, int]:
        names = ("verdicts", "passed", "rejected", "not_inspected")
        return {name: sum(lane.totals.get(name, 0) for lane in self.lanes) for name in names}

    def table(self) -> dict[str, Any]:
        """The heartbeat's content; ages_ms counts from the last sign of life of each stage."""
        publisher, journal, images = self.outlets.publisher, self.outlets.journal, self.outlets.images
        return {
            "schema": HEARTBEAT_SCHEMA,
            "station": self.settings.station,
            "boot_id": self.boot_id,
            "version": __version__,
            "state": self.state,
            "troubles": self.troubles,
            "inspecting": all(lane.inspects for lane in self.lanes),
            "ages_ms": self._ages_ms(),
            "uptime_s": round(time.monotonic() - self.began_s, 1),
            "heartbeat_ms": self.settings.publish.heartbeat_ms,
            "subscriptions": publisher.subscriptions,
            "send_errors": publisher.send_errors,
            "denied": self.gate.denied,
            "journal_backlog": journal.backlog,
            "journal_dropped": journal.dropped,
            "journal_head": str(journal.head),
            "journal_set_aside": journal.set_aside,
            "images_backlog": images.backlog if images else 0,
            "images_dropped": images.dropped if images else 0,
            "gc_pause_ms": round(self.pauses.longest_ms, 2),
            "cameras": {lane.name: lane.describe() for lane in self.lanes},
        }

    def _ages_ms(self) -> dict[str, int]:
        ages_s = {f"camera-{lane.name}": lane.camera_age_s for lane in self.lanes} | self.health.ages_s()
        return {name: round(age_s * 1000) for name, age_s in ages_s.items()}
