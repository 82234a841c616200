"""The daemon of a line as a process: its folder, settings and recipes; start, stop, kill, reload."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import tomli_w

from inspectord.bench import free_endpoint
from inspectord.keys import LOCAL, Keys, keygen
from tests.faults.recorder import Recorder
from tests.faults.setup import LIMIT, Setup
from tests.helpers_recipe import activate_version, write_recipe

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).resolve().parent / "inject"
START_S = 30.0


class Service:
    """`inspectord run` in a folder of its own; knows how each of its lives ended."""

    recorder: Recorder

    def __init__(self, folder: Path, setup: Setup | None = None) -> None:
        self.folder, self.setup = folder, setup or Setup()
        self.control = folder / "faults"
        self.recipes, self.state_dir = folder / "recipes", folder / "state"
        self.log_path = folder / "daemon.log"
        self.cameras = self.setup.names
        self.alone = True  # False: another fault strikes at the same time
        self.timed = True  # False: the machine may have other things to do, and nothing is said of seconds
        self.exit_codes: list[int] = []
        self.endpoints = {"verdicts": free_endpoint(), "replay": free_endpoint()}
        self.keys_dir = folder / "keys"
        self.keys: Keys | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.RLock()  # of the daemon's life: two faults may want to end it
        self._ends: dict[int, tuple[Any, int]] = {}  # pid -> how the daemon ended, when
        self._ending: set[int] = set()  # daemons that are meant to end

    def start(self, wait: bool = False) -> None:
        """Start the daemon; with wait, until it says ready."""
        command = [*self.setup.wrapper, sys.executable, "-m", "inspectord", "run"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.config_path)],
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=self.folder,
            )
        if wait:
            began_ns = time.monotonic_ns()
            self.recorder.wait(lambda: self._ready_since(began_ns), START_S, "the daemon is ready")

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; the exit code. Every header that was handed out must then have its verdict."""
        return self._end(signal.SIGTERM, "in order", timeout_s)

    def kill(self) -> None:
        """SIGKILL, as by the kernel when memory runs out."""
        self._end(signal.SIGKILL, "killed", 10.0)

    def reload(self) -> None:
        self.signal(signal.SIGHUP)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def restart(self) -> float:
        """After kill() or stop(): seconds until the new daemon says ready."""
        began_s = time.monotonic()
        self.start(wait=True)
        return time.monotonic() - began_s

    def wait_end(self, timeout_s: float) -> int:
        """The daemon ends by itself: its exit code."""
        assert self.process is not None
        self._ending.add(self.pid)
        code = self.process.wait(timeout_s)
        self._note_end("in order" if code == 0 else "gave up", code)
        return code

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def check_alive(self) -> None:
        """Raises AssertionError where the daemon ended by itself, with the end of its log."""
        expected = self.process is None or self.pid in self._ending
        if self.process is not None and not expected and self.process.poll() is not None:
            tail = self.log_path.read_text(errors="replace")[-600:]
            raise AssertionError(f"the daemon ended by itself with {self.process.returncode}: {tail}")

    @property
    def pid(self) -> int:
        """The daemon's own, behind any wrapper."""
        assert self.process is not None
        return self.process.pid

    # --- settings ---

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(INJECT), str(ROOT)])
        return os.environ | {"PYTHONPATH": path, "LINE_FAULTS": str(self.control)} | self.setup.environment

    @property
    def config_path(self) -> Path:
        path = self.folder / "inspectord.toml"
        path.write_text(tomli_w.dumps(self.config()), encoding="utf-8")
        return path

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "station": "line",
            "state_dir": str(self.state_dir),
            "recipes_dir": str(self.recipes),
            "publish": {
                name: each.replace("127.0.0.1", self.setup.listens_on)
                for name, each in self.endpoints.items()
            },
            "security": {"mode": "curve" if self.setup.curve else "plain", "keys_dir": str(self.keys_dir)},
            "inference": {"threads": 1},
            "logging": {"format": "json"},
            "cameras": [self.setup.camera(number) for number in range(self.setup.cameras)],
        }
        for key, value in self.setup.settings.items():
            config[key] = config[key] | value if isinstance(config.get(key), dict) else value
        return config

    def write_recipe(self, version: str, limit: float = LIMIT, activate: bool = False) -> Path:
        return write_recipe(self.recipes, "demo", version, limit=limit, activate=activate)

    def activate(self, version: str) -> None:
        activate_version(self.recipes, "demo", version)

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (*self.cameras, "daemon"):
            (self.control / "orders" / name).mkdir(parents=True)
        self.write_recipe("v1", activate=True)
        if self.setup.curve:
            for _ in keygen(self.keys_dir, LOCAL):
                pass
            self.keys = Keys.load(self.keys_dir)
        (self.control / "line.json").write_text(json.dumps(self.setup.injected()))

    def _ready_since(self, since_ns: int) -> bool:
        """Ready, or degraded only by a journal that was set aside, which is told until the next start."""
        if not self.recorder.beats or self.recorder.beats[-1][0] <= since_ns:
            return False
        state = self.recorder.beats[-1][1]
        told = f"journal: {state['journal_set_aside']}"
        return bool(state["state"] == "ready" or state["troubles"] == [told])

    def _end(self, number: signal.Signals, how: str, timeout_s: float) -> int:
        assert self.process is not None
        self._ending.add(self.pid)
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        self._note_end(how if number is signal.SIGKILL or code == 0 else "gave up", code)
        time.sleep(0.05)  # what it sent is still on its way to the recorder
        return code

    def _note_end(self, how: str, code: int) -> None:
        self.exit_codes.append(code)
        self._ends[self.pid] = (how, time.monotonic_ns())

    def _destroy(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self._note_end("killed", -9)
