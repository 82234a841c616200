"""What systemd hears from the real daemon, on a real socket: readiness, signs of life, reloads, the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers_daemon import Box, events_until, line_source, verdicts
from helpers_recipe import activate_version, rewrite_recipe, write_recipe

from inspectord.client import Inspected

# A thread of the verdict's path that waits for ever, with the patience of a test.
STUCK = """
import sys, threading
from inspectord import health
from inspectord.journal import Journal
health.PATIENCE_S = 0.5
Journal.put = lambda *_: threading.Event().wait()
from inspectord.cli import main
sys.exit(main(["run", "--config", {config!r}]))
"""


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    box.add_camera(line_source(), deadline_ms=2000)
    yield box
    box.kill()


class Listener:
    """systemd's end of the notification socket; messages as the lines they have."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)

    def next(self, timeout_s: float = 15.0) -> list[str]:
        self._socket.settimeout(timeout_s)
        return self._socket.recv(4096).decode().split("\n")

    def until(self, line: str, timeout_s: float = 15.0, silence_s: float = 15.0) -> list[list[str]]:
        """All messages up to the first with this line; TimeoutError where it does not come, or none does."""
        found: list[list[str]] = []
        end_s = time.monotonic() + timeout_s
        while not found or line not in found[-1]:
            assert time.monotonic() < end_s, found[-3:]
            found.append(self.next(min(silence_s, timeout_s)))
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def any_systemd(request, tmp_path):
    listener = Listener(str(tmp_path / "notify") if request.param == "path" else f"@inspectord-{os.getpid()}")
    yield listener
    listener.close()


@pytest.fixture
def systemd(tmp_path):
    listener = Listener(str(tmp_path / "notify"))
    yield listener
    listener.close()


def test_ready_comes_after_the_golden_check_then_signs_of_life_then_stopping(box, any_systemd):
    box.start(NOTIFY_SOCKET=any_systemd.address)
    ready = any_systemd.next()
    assert ready[0] == "READY=1"
    assert ready[1].startswith("STATUS=")
    events = [line["event"] for line in box.log()]
    assert "recipe ready" in events
    alive = any_systemd.next()
    assert alive[0] == "WATCHDOG=1"
    assert re.fullmatch(r"STATUS=ready, .*verdicts.*", alive[1])
    box.signal(signal.SIGTERM)
    assert any_systemd.until("STOPPING=1")[-1] == ["STOPPING=1"]
    assert box.wait() == 0
    with pytest.raises(TimeoutError):
        any_systemd.until("READY=1", timeout_s=0.2)


def test_a_recipe_that_does_not_repeat_its_golden_scores_is_never_ready(box, systemd):
    scores = box.recipes / "demo" / "v1" / "golden" / "scores.json"
    scores.write_text(scores.read_text().replace('"score": 0.', '"score": 0.9'))
    rewrite_recipe(scores.parent.parent)
    box.start(NOTIFY_SOCKET=systemd.address)
    assert box.wait() == 65
    with pytest.raises(TimeoutError):
        systemd.next(timeout_s=0.1)


def test_signs_of_life_come_twice_as_often_as_the_unit_demands(box, systemd):
    box.start(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="800000")
    systemd.until("READY=1")
    for _ in range(5):
        assert systemd.next(0.4)[0] == "WATCHDOG=1"


def test_a_thread_that_is_stuck_ends_the_signs_of_life(box, systemd):
    code = STUCK.format(config=str(box.config_path))
    environment = os.environ | {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "300000"}
    with box.log_path.open("ab") as log:
        box.process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, env=environment)
    systemd.until("READY=1")
    with pytest.raises(TimeoutError):
        systemd.until("no more", silence_s=2.0)  # the watchdog has 0.3
    assert box.process.poll() is None  # alive, and yet to be killed
    stuck = [line for line in box.log() if "stuck" in line["event"]]
    assert stuck[0]["threads"] == ["inspect-cam1"]


def test_a_reload_is_told_from_its_beginning_to_its_end(box, systemd):
    box.start(NOTIFY_SOCKET=systemd.address)
    systemd.until("READY=1")
    with box.connect() as client:
        write_recipe(box.recipes, version="v2", limit=0.9, activate=False)
        activate_version(box.recipes, "demo", "v2")
        before_us = time.monotonic_ns() // 1000
        box.signal(signal.SIGHUP)
        begun = systemd.until("RELOADING=1")[-1]
        told_us = int(next(line for line in begun if line.startswith("MONOTONIC_USEC=")).split("=")[1])
        assert before_us <= told_us <= time.monotonic_ns() // 1000
        systemd.until("READY=1")
        seen = verdicts(events_until(client, lambda e: isinstance(e, Inspected) and not e.message.historical))
        # The ring may still hold parts from before; from the next on it is the new recipe.
        seen += verdicts(events_until(client, lambda e: isinstance(e, Inspected) and e.message.limit == 0.9))
        assert seen[-1].seq - seen[0].seq < 20
