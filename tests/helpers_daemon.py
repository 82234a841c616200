"""A real daemon in a real process, and messages and doubles for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tomli_w
from helpers_recipe import write_recipe

from inspectord.bench import free_endpoint
from inspectord.client import Client, Event, Heartbeat, Inspected
from inspectord.errors import StateError
from inspectord.keys import LOCAL, Keys, keygen
from inspectord.messages import Reason, Verdict, VerdictMessage

REASONS = {
    Verdict.PASS: Reason.WITHIN_LIMIT,
    Verdict.REJECT: Reason.OVER_LIMIT,
    Verdict.NOT_INSPECTED: Reason.LATE,
}


def make_message(seq: int, **changes: Any) -> VerdictMessage:
    verdict = changes.get("verdict", Verdict.PASS)
    values: dict[str, Any] = {
        "station": "s1",
        "camera": "cam1",
        "boot_id": "0" * 32,
        "seq": seq,
        "part_id": f"part-{seq}",
        "trigger_id": seq,
        "frame_id": seq,
        "encoder": 100 * seq,
        "verdict": verdict,
        "reason": REASONS[verdict],
        "score": 0.25,
        "limit": 0.3,
        "boxes": (),
        "recipe": "demo/v1",
        "recipe_hash": "a" * 64,
        "model_hash": "b" * 64,
        "t_exposure_ns": 0,
        "t_fetch_ns": 1_000,
        "t_decided_ns": 2_000,
        "decided_at": "2026-01-02T03:04:05.678+00:00",
        "inference_ms": 1.5,
        "latency_ms": 2.5,
        "deadline_ms": 200.0,
        "simulated": True,
    }
    return VerdictMessage(**(values | changes))


def line_source(**changes: Any) -> dict[str, Any]:
    return {"kind": "line", "rate_hz": 50.0, "width": 64, "height": 64, **changes}


class Box:
    """A folder with configuration and recipes, and the daemon that runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipes = folder / "recipes"
        self.log_path = folder / "daemon.log"
        self.config: dict[str, Any] = {
            "station": "s1",
            "state_dir": str(folder / "state"),
            "recipes_dir": str(self.recipes),
            "publish": {"verdicts": free_endpoint(), "replay": free_endpoint()},
            "security": {"keys_dir": str(folder / "keys")},
            "inference": {"threads": 1},
            "cameras": [],
        }
        self.process: subprocess.Popen[bytes] | None = None
        keygen(folder / "keys", LOCAL)
        self.keys = Keys.load(folder / "keys")

    def add_camera(
        self, source: dict[str, Any], name: str = "cam1", product: str = "demo", **more: Any
    ) -> None:
        if not (self.recipes / product).exists():
            write_recipe(self.recipes, product)
        self.config["cameras"].append({"name": name, "recipe": product, "source": source, **more})

    @property
    def config_path(self) -> Path:
        path = self.folder / "inspectord.toml"
        path.write_text(tomli_w.dumps(self.config), encoding="utf-8")
        return path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "inspectord", *arguments]

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = self.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)

    def start(self, **environment: str) -> None:
        command = self.command("run", "--config", str(self.config_path))
        with self.log_path.open("ab") as log_file:
            self.process = subprocess.Popen(
                command, stdout=log_file, stderr=subprocess.STDOUT, env=os.environ | environment
            )

    def connect(self, **more: Any) -> Client:
        """A client, as soon as the daemon answers."""
        publish = self.config["publish"]
        options = {"keys": self.keys, "connect_s": 0.3} | more
        client = Client(publish["verdicts"], publish["replay"], **options)
        end_s = time.monotonic() + 20
        while time.monotonic() < end_s:
            try:
                client.start()
                return client
            except StateError:
                if self.process is not None and self.process.poll() is not None:
                    break
        raise AssertionError(f"the daemon does not answer:\n{self.log_path.read_text()}")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def log(self) -> list[dict[str, Any]]:
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def events_until(client: Client, enough: Any, timeout_s: float = 20.0) -> list[Event]:
    """All events up to the one that is enough."""
    found: list[Event] = []
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        event = client.next(0.2)
        if event is not None:
            found.append(event)
            if enough(event):
                return found
    raise AssertionError(f"not seen within {timeout_s} s; last events: {found[-5:]}")


def verdicts(events: list[Event]) -> list[VerdictMessage]:
    return [event.message for event in events if isinstance(event, Inspected)]


def heartbeat_state(wanted: str) -> Any:
    return lambda event: isinstance(event, Heartbeat) and event.state["state"] == wanted
