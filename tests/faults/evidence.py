"""What is known after a run: frames handed out, inferences, what subscribers heard, the journal."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inspectord.client import Event
from inspectord.messages import VerdictMessage

Journal = dict[
    tuple[str, str], list[dict[str, Any]]
]  # (boot_id, camera) -> verdicts in the order of their rows


@dataclass(frozen=True, slots=True)
class Handed:
    """One header that the source gave to the product; code is what the frame's pixels say, if any."""

    t_ns: int
    status: str
    frame_id: int
    trigger_id: int
    encoder: int
    part_id: str
    exposed_ns: int
    fetched_ns: int
    code: int | None
    number: int | None = None


@dataclass(slots=True)
class CameraRun:
    """One life of a camera process."""

    camera: str
    pid: int
    daemon_pid: int
    handed: list[Handed] = field(default_factory=list)
    shots: list[dict[str, Any]] = field(
        default_factory=list
    )  # of a GenTL producer: number, code, fate, fetch
    closed: bool = False  # an orderly end: everything handed out has reached the ring


@dataclass(frozen=True, slots=True)
class Inferred:
    """One inference that came to its end; score is None where any output was not finite."""

    t_ns: int
    camera: str
    code: int | None
    score: float | None
    limit: float
    recipe_hash: str
    faulted: str | None


@dataclass(frozen=True, slots=True)
class Heard:
    """One message at a subscriber without a limit on its queue; topic_verdict is the topic's last word."""

    t_ns: int
    topic: str
    message: VerdictMessage


@dataclass(slots=True)
class Boot:
    """One life of the daemon. ended: by SIGTERM or of itself in order, killed, or given up with an error."""

    boot_id: str
    pid: int
    ended: Literal["in order", "killed", "gave up", "running"] = "running"
    ended_ns: int = 0
    cameras: list[CameraRun] = field(default_factory=list)
    inferred: list[Inferred] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    beats_ns: list[tuple[int, str]] = field(default_factory=list)  # (receipt, state) of every heartbeat


@dataclass(slots=True)
class Evidence:
    boots: list[Boot]
    journal: Journal | None = None  # None: there is none to compare with
    client: list[tuple[int, Event]] = field(default_factory=list)  # the product's own client, with times
    strays: list[str] = field(default_factory=list)  # messages that nobody could read


def read_truth(folder: Path) -> list[Boot]:
    """The logs of all processes as boots, in the order of their start."""
    logs = [
        _lines(path) for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.name.split("-")[-2])
    ]
    logs = [lines for lines in logs if lines]
    boots: dict[int, Boot] = {}
    for lines in logs:
        for line in lines:
            if line["event"] == "boot":
                boots[lines[0]["pid"]] = Boot(line["boot_id"], lines[0]["pid"])
    for lines in logs:
        head = lines[0]
        if head["place"] == "inference" and head["pid"] in boots:
            boots[head["pid"]].inferred += [
                _as(Inferred, each) for each in lines if each["event"] == "inferred"
            ]
    _add_cameras(boots, logs)
    return list(boots.values())


def _add_cameras(boots: dict[int, Boot], logs: list[list[dict[str, Any]]]) -> None:
    runs: dict[int, CameraRun] = {}
    for lines in logs:
        head = lines[0]
        if head["parent"] not in boots or head["place"] in ("inference", "boot"):
            continue
        run = runs.get(head["pid"])
        if run is None:
            run = runs[head["pid"]] = CameraRun(head["place"], head["pid"], head["parent"])
            boots[head["parent"]].cameras.append(run)
        run.handed += [_as(Handed, each) for each in lines if each["event"] == "handed"]
        run.shots += [each for each in lines if each["event"] == "shot"]
        run.closed = run.closed or any(each["event"] == "closed" for each in lines)


def _as(kind: Any, line: dict[str, Any]) -> Any:
    return kind(**{name: line[name] for name in kind.__dataclass_fields__})


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("}\n"):
            found.append(json.loads(line))
    return found


def read_journal(path: Path) -> Journal:
    """Every row's message, decoded; raises sqlite3.Error for a file that is damaged."""
    for _ in range(5):
        try:
            return _read_journal(path)
        except sqlite3.OperationalError:  # "locking protocol": others were opening it at that moment
            time.sleep(0.5)
    return _read_journal(path)


def _read_journal(path: Path) -> Journal:
    journal: Journal = {}
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        for (text,) in database.execute("SELECT message FROM verdicts ORDER BY id"):
            message = json.loads(text)
            journal.setdefault((message["boot_id"], message["camera"]), []).append(message)
    finally:
        database.close()
    return journal
