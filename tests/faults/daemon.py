"""Faults of the daemon's own life: killed, stopped, reloaded, started with a broken recipe."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from itertools import pairwise
from pathlib import Path

from inspectord.client import Restart
from tests.faults.line import Line, Setup
from tests.faults.registry import fault

READY_S = 5.0
SEEN_S = 1.0  # from the first heartbeat of a new daemon to the client's Restart


@fault(recovers_s=READY_S, strikes_a_run=5)
def daemon_killed(line: Line, rng: random.Random) -> float:
    """The daemon is killed (-9) and started again; seconds to ready."""
    with line.lock:
        line.kill()
        time.sleep(rng.choice([0.0, 0.0, 1.2]))
        took_s = line.restart()
    _client_knows(line)
    journal_verifies(line)
    line.flows(20)
    return took_s


@fault(recovers_s=READY_S, strikes_a_run=2)
def daemon_killed_starting(line: Line, rng: random.Random) -> float:
    """The daemon is killed (-9), started, killed again before it is ready, and started again."""
    with line.lock:
        line.kill()
        line.start()
        time.sleep(rng.uniform(0.1, 1.5))
        line.kill()
        took_s = line.restart()
    line.flows(20)
    return took_s


@fault(recovers_s=READY_S, strikes_a_run=5)
def daemon_stopped_and_started(line: Line, rng: random.Random) -> float:
    """SIGTERM under load, and a start; seconds to ready."""
    with line.lock:
        assert line.stop() == 0
        took_s = line.restart()
    line.flows(20)
    return took_s


def _client_knows(line: Line) -> None:
    """The client told of the new start within a second of its first heartbeat."""
    boot_id = line.recorder.state["boot_id"]
    first_ns = next(t_ns for t_ns, state in line.recorder.beats if state["boot_id"] == boot_id)

    def told() -> list[int]:
        return [
            t_ns
            for t_ns, event in list(line.recorder.events)
            if isinstance(event, Restart) and event.boot_id == boot_id
        ]

    line.recorder.wait(told, 5.0, "the client tells of the restart")
    assert (told()[0] - first_ns) / 1e9 <= SEEN_S or not (line.alone and line.timed), (
        "the client noticed the restart too late"
    )


def journal_verifies(line: Line) -> None:
    """Raises AssertionError where `inspectord journal verify` finds the chain broken."""
    verify = ["journal", "verify", str(line.state_dir / "journal.sqlite")]
    command = [sys.executable, "-m", "inspectord", *verify]
    done = subprocess.run(
        command, env=line.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@fault()
def reload_under_load(line: Line, rng: random.Random) -> float:
    """SIGHUP with a new recipe: the old one before, the new one after, nothing lost; seconds to change."""
    line.write_recipe(_new_version(), limit=round(rng.uniform(0.2, 0.5), 6), activate=True)
    old, seen = line.recorder.heard[-1].message.recipe_hash, len(line.recorder.heard)
    line.reload()

    def changed() -> bool:
        return line.recorder.heard[-1].message.recipe_hash != old

    took_s = line.recorder.wait(changed, 20.0, "the new recipe runs")
    line.flows(10)
    row = [each.message.recipe_hash for each in line.recorder.heard[seen:] if each.message.camera == "cam1"]
    changes = [after for before, after in pairwise(row) if before != after]
    assert len(changes) == 1 or not line.alone, f"{len(changes)} changes of the recipe between two verdicts"
    return took_s


@fault(pairs=False)
def reload_of_broken_recipe(line: Line, rng: random.Random) -> float:
    """SIGHUP with a recipe that is damaged: refused, the old one runs on, and heartbeats say so."""
    good = Path(line.recipes / "demo" / "active").resolve().name
    old = line.recorder.heard[-1].message.recipe_hash
    line.write_recipe(version := _new_version())
    _break(line.recipes / "demo" / version, rng)
    line.activate(version)
    line.reload()
    line.recorder.wait(lambda: _reload_error(line), 20.0, "heartbeats tell of the refused recipe")
    line.flows(10)
    assert line.recorder.heard[-1].message.recipe_hash == old
    line.activate(good)
    line.reload()
    return line.recorder.wait(lambda: not _reload_error(line), 20.0, "the good recipe is taken back")


@fault(pairs=False, strikes_a_run=5, recovers_s=READY_S)
def start_with_broken_recipe(line: Line, rng: random.Random) -> float:
    """The active recipe is damaged: the daemon refuses to start; seconds to ready after the repair."""
    good = Path(line.recipes / "demo" / "active").resolve().name
    assert line.stop() == 0
    line.write_recipe(version := _new_version())
    _break(line.recipes / "demo" / version, rng)
    line.activate(version)
    line.start()
    assert line.wait_end(20.0) == 65
    line.activate(good)
    took_s = line.restart()
    line.flows(20)
    return took_s


@fault(Setup(settings={"on_broken_recipe": "last_good"}), pairs=False, strikes_a_run=5, recovers_s=READY_S)
def start_with_last_good_recipe(line: Line, rng: random.Random) -> float:
    """A damaged recipe where last_good is set: the one that last ran takes its place, state degraded."""
    good = Path(line.recipes / "demo" / "active").resolve().name
    old = line.recorder.heard[-1].message.recipe_hash
    assert line.stop() == 0
    line.write_recipe(version := _new_version())
    _break(line.recipes / "demo" / version, rng)
    line.activate(version)
    since_ns = time.monotonic_ns()
    line.start()
    line.flows(20, since_ns=since_ns)
    assert line.recorder.heard[-1].message.recipe_hash == old
    line.recorder.wait(lambda: line.recorder.state["state"] == "degraded", 5.0, "degraded")
    assert line.stop() == 0
    line.activate(good)
    return line.restart()


def _reload_error(line: Line) -> str | None:
    error: str | None = line.recorder.state["cameras"]["cam1"]["reload_error"]
    return error


def _new_version() -> str:
    return f"v{uuid.uuid4().hex[:8]}"


def _break(recipe: Path, rng: random.Random) -> None:
    """Cut, altered, missing or empty, as copying and disks leave it."""
    victim = recipe / rng.choice(["model.bin", "model.xml", "recipe.toml", "golden/scores.json"])
    match rng.choice(["cut", "altered", "missing", "empty"]):
        case "cut":
            victim.write_bytes(victim.read_bytes()[:-9])
        case "altered":
            data = bytearray(victim.read_bytes())
            data[len(data) // 2] ^= 0x01
            victim.write_bytes(bytes(data))
        case "missing":
            victim.unlink()
        case "empty":
            victim.write_bytes(b"")
