"""A scripted line around a real daemon: what it hears of it, orders to fail, and the evidence at the end."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, Self

from inspectord.messages import Verdict
from tests.faults.evidence import Evidence, read_journal, read_truth
from tests.faults.recorder import Recorder
from tests.faults.service import ROOT, START_S, Service
from tests.faults.setup import Setup

__all__ = ["ROOT", "Line", "Setup"]


class Line(Service):
    """with Line(folder, setup) as line: ...; the daemon runs and every camera gives inspected parts.

    At the end the daemon is asked to stop, and line.evidence() is complete. Nothing outlives the `with`.
    """

    def __enter__(self) -> Self:
        self._prepare()
        self.recorder = Recorder(self.endpoints["verdicts"], self.endpoints["replay"], keys=self.keys)
        try:
            self.start()
            self.flows(START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.process is not None and self.process.poll() is None:
                self.lift()
                self.stop()
        finally:
            self._destroy()
            self.recorder.close()

    # --- looking ---

    def camera_pid(self, camera: str = "cam1", timeout_s: float = START_S) -> int:
        """Of the camera's present process, as heartbeats say; waits while there is none."""
        found: list[int] = []

        def known() -> bool:
            beats = self.recorder.beats
            if not beats or time.monotonic_ns() - beats[-1][0] > 10**9:
                return False
            pid = beats[-1][1]["cameras"].get(camera, {}).get("pid")
            found[:] = [pid] if pid and _is_alive(pid) else []
            return bool(found)

        self.recorder.wait(known, timeout_s, f"{camera} has a process")
        return found[0]

    def flows(self, timeout_s: float, count: int = 5, since_ns: int | None = None) -> float:
        """Seconds until every camera gave count inspected parts, fetched from now on, in one row."""
        since_ns = time.monotonic_ns() if since_ns is None else since_ns

        def flowing() -> bool:
            self.check_alive()
            for camera in self.cameras:
                last = [m for m in self._last(camera, count) if m.t_fetch_ns >= since_ns]
                if len(last) < count or any(m.verdict is Verdict.NOT_INSPECTED for m in last):
                    return False
            return True

        return self.recorder.wait(flowing, timeout_s, f"{count} inspected parts of each camera")

    def ready(self, timeout_s: float = 10.0) -> float:
        """Seconds until a heartbeat that is sent from now on says ready."""
        since_ns = time.monotonic_ns()
        return self.recorder.wait(lambda: self._ready_since(since_ns), timeout_s, "a heartbeat says ready")

    def parts(self, count: int, camera: str = "cam1", timeout_s: float = 20.0) -> None:
        """Wait for so many verdicts of any kind."""
        seen = len(self.recorder.heard)
        self.recorder.wait(
            lambda: sum(each.message.camera == camera for each in self.recorder.heard[seen:]) >= count,
            timeout_s,
            f"{count} more verdicts of {camera}",
        )

    def log(self) -> list[dict[str, Any]]:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    # --- orders ---

    def inject(self, place: str, point: str, action: str, times: int = 1, **parameters: Any) -> list[Path]:
        """Fail so many times at a point; see tests/faults/inject/injected. PLACE: a camera, or "daemon"."""
        return [self._order(place, point, action, "json", parameters) for _ in range(times)]

    def hold(self, place: str, point: str, action: str, **parameters: Any) -> Path:
        """Fail at every pass until lift()."""
        return self._order(place, point, action, "hold", parameters)

    def lift(self, *orders: Path) -> None:
        """Take orders back; all of them where none is named."""
        for path in orders or list((self.control / "orders").rglob("*--*")):
            path.unlink(missing_ok=True)

    def carried_out(self, orders: list[Path], timeout_s: float = 10.0) -> float:
        """Seconds until the orders were taken by the process that they are for."""
        return self.recorder.wait(
            lambda: not any(path.exists() for path in orders), timeout_s, f"{orders} carried out"
        )

    def evidence(self) -> Evidence:
        """After the `with`, or between two lives of the daemon: all that is known."""
        boots = read_truth(self.control / "truth")
        by_id = {boot.boot_id: boot for boot in boots}
        for boot in boots:
            ended = self._ends.get(boot.pid)
            if ended is not None:
                boot.ended, boot.ended_ns = ended
        strays = list(self.recorder.strays)
        for heard in self.recorder.heard:
            if heard.message.boot_id in by_id:
                by_id[heard.message.boot_id].heard.append(heard)
            else:
                strays.append(f"a verdict of an unknown start {heard.message.boot_id}")
        for t_ns, state in self.recorder.beats:
            if state["boot_id"] in by_id:
                by_id[state["boot_id"]].beats_ns.append((t_ns, state["state"]))
        journal = self.state_dir / "journal.sqlite"
        return Evidence(
            boots, read_journal(journal) if journal.exists() else None, list(self.recorder.events), strays
        )

    def _order(self, place: str, point: str, action: str, kind: str, parameters: dict[str, Any]) -> Path:
        path = self.control / "orders" / place / f"{point}--{action}--{time.monotonic_ns()}.{kind}"
        hidden = path.with_name(f".{uuid.uuid4().hex}")
        hidden.write_text(json.dumps(parameters))
        hidden.replace(path)
        return path

    def _last(self, camera: str, count: int) -> list[Any]:
        found = []
        for each in reversed(self.recorder.heard):
            if each.message.camera == camera:
                found.append(each.message)
                if len(found) == count:
                    break
        return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
