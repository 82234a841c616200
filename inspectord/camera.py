"""The daemon's handle on one camera process: start it, hear from it, bury it, start it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import inspectord
from inspectord.control import CameraLine
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.health import backoff_s
from inspectord.ring import Ring
from inspectord.settings import Source

State: TypeAlias = Literal["starting", "running", "armed", "lost", "ended"]

HUNG_S = 2.0  # status comes four times a second; silence for so long is a hung process
OPEN_LIMIT_S = 30.0  # discovery of GigE devices takes seconds, and says nothing meanwhile
HEALTHY_S = 30.0  # after so long the back-off starts anew
BURY_S = 0.5  # a killed process is gone within milliseconds, unless a driver holds it in the kernel


@dataclass(frozen=True, slots=True)
class CameraEvent:
    """What happened since the last poll; each loss is told once, however many restarts it takes."""

    kind: Literal["starting", "running", "armed", "lost", "ended", "log"]
    text: str = ""
    level: str = "info"  # of a log line: info, warning, error


class CameraProcess:
    """One camera; call poll() from one thread, often.

    Each loss is one CAMERA_LOST header in the ring, behind the frames from before it: the frame that was
    being written, or else a header of its own. What passes while the camera is away is not seen.

    The kernel kills the process when the thread that started it ends (PR_SET_PDEATHSIG), so start() and
    poll() belong into a thread that lives as long as the camera shall.
    """

    def __init__(self, name: str, source: Source, ring: Ring, hung_s: float = HUNG_S) -> None:
        self.name = name
        self.state: State = "starting"
        self.last_error = ""
        self.restarts = 0
        self.counters = {"frames": 0, "faulty": 0, "displaced": 0}  # of all its processes together
        self._source, self._ring, self._hung_s = source, ring, hung_s
        self._process: subprocess.Popen[bytes] | None = None
        self._line: CameraLine | None = None
        self._base = dict(self.counters)
        self._failures = 0
        self._start_at_s = self._heard_s = self._healthy_since_s = 0.0
        self._has_beat = False
        self._told = ""  # by the present process, why it gives up
        self._dying = self._loss_due = False
        self._asked_s: float | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def age_s(self) -> float:
        """Seconds since the process was last heard."""
        return time.monotonic() - self._heard_s

    def start(self) -> None:
        """Start the process; whether it finds its device comes with poll()."""
        try:
            self._spawn()
        except OSError as error:  # no more processes, descriptors or memory: as if the camera were lost
            self._told = f"the camera process can't be started ({error.strerror}); free memory or descriptors"

    def _spawn(self) -> None:
        line = CameraLine()
        memory_fd, event_fd = self._ring.fds
        fds = {"--memory-fd": memory_fd, "--event-fd": event_fd, "--control-fd": line.camera_fd}
        command = [sys.executable, "-P", "-m", "inspectord.acquire"]
        for option, fd in fds.items():
            command += [option, str(fd)]
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=tuple(fds.values()),
                stdin=subprocess.DEVNULL,
                env=_environment(),
                process_group=0,  # a signal to the daemon's group must not look like a loss of the camera
            )
        except OSError:
            line.close()
            raise
        line.give_away(self._source.model_dump_json())
        self._line = line
        self._heard_s, self._has_beat, self._told = time.monotonic(), False, ""

    def poll(self) -> list[CameraEvent]:
        """What happened since the last call; also buries a dead or hung process and starts a new one."""
        events: list[CameraEvent] = []
        if self._dying:
            self._bury(0.0)
        elif self._process is not None:
            exit_code = self._process.poll()  # before the last packets are read, so that none is missed
            ended = self._hear(events)
            self._judge(exit_code, ended, events)
        elif self.state == "lost" and time.monotonic() >= self._start_at_s:
            self.restarts += 1
            self.start()
        if self._process is None and self._told:
            self._lose(self._told, events)
        return events

    def ask_to_end(self) -> None:
        """Before stop(), where several cameras shall end at the same time."""
        self._asked_s = self._asked_s or time.monotonic()
        if self._line is not None:
            self._line.close()

    def stop(self, timeout_s: float = 3.0) -> None:
        """End the process, by asking, by SIGTERM, by SIGKILL; gone afterwards, or held by the kernel."""
        self.ask_to_end()
        assert self._asked_s is not None
        for share, end in ((0.5, signal.SIGTERM), (1.0, signal.SIGKILL)):
            if self._process is not None and not self._dying:
                try:
                    self._process.wait(max(0.0, self._asked_s + share * timeout_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self._process.send_signal(end)
        self._bury(BURY_S)
        self.state = "ended"

    def _hear(self, events: list[CameraEvent]) -> bool:
        """Read the status packets; True if the source came to its end."""
        ended = False
        for packet in self._line.packets() if self._line else []:
            self._heard_s = time.monotonic()
            match packet["event"]:
                case "beat":
                    self._on_beat(packet, events)
                case "log":
                    events.append(CameraEvent("log", packet["text"], packet["level"]))
                case "lost":
                    self._told = packet["error"]
                case "ended":
                    ended = True
        return ended

    def _on_beat(self, packet: dict[str, Any], events: list[CameraEvent]) -> None:
        self._has_beat = True
        self.counters = {name: self._base[name] + packet[name] for name in self.counters}
        state: State = packet["state"]
        if state == "starting" or state == self.state:
            return
        if self.state in ("starting", "lost"):
            self._healthy_since_s = time.monotonic()
        self.state = state
        events.append(CameraEvent(state))

    def _judge(self, exit_code: int | None, ended: bool, events: list[CameraEvent]) -> None:
        silent_s = time.monotonic() - self._heard_s
        if ended:
            self.stop()
            events.append(CameraEvent("ended"))
        elif exit_code is not None:
            self._lose(self._cause(exit_code), events)
        elif silent_s > (self._hung_s if self._has_beat else OPEN_LIMIT_S):
            self._lose(f"the camera process hung, silent for {silent_s:.0f} s", events)

    def _cause(self, exit_code: int) -> str:
        if self._told:
            return self._told
        if exit_code < 0:
            return f"the camera process was killed by {signal.Signals(-exit_code).name}"
        return f"the camera process ended with exit code {exit_code}"

    def _lose(self, reason: str, events: list[CameraEvent]) -> None:
        healthy = self.state in ("running", "armed")
        if healthy and time.monotonic() - self._healthy_since_s >= HEALTHY_S:
            self._failures = 0
        self._failures += 1
        if self.state != "lost":
            events.append(CameraEvent("lost", reason, "error"))
            self._loss_due = True
        elif reason != self.last_error:
            events.append(CameraEvent("log", reason, "warning"))
        self.state, self.last_error, self._told = "lost", reason, ""
        self._start_at_s = time.monotonic() + backoff_s(self._failures)
        self._bury(BURY_S)

    def _loss(self) -> FrameHeader:
        simulated = self._source.kind != "genicam"
        now_ns = time.monotonic_ns()
        return FrameHeader(FrameStatus.CAMERA_LOST, frame_id=-1, fetched_ns=now_ns, simulated=simulated)

    def _bury(self, limit_s: float) -> None:
        """Kill and reap what may still run, then mend the ring, which only then has no producer.

        A process that a driver holds in the kernel can't be killed: it is buried by a later poll().
        """
        if self._process is not None:
            self._process.kill()
            try:
                self._process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self._dying = True
                return
            self._process = None
        self._dying = False
        if self._line is not None:
            self._line.close()
            self._line = None
        self._base = dict(self.counters)
        cut = self._ring.recover()
        if self._loss_due and not cut:
            self._ring.put(self._loss())
        self._loss_due = False


def _environment() -> dict[str, str]:
    """This environment; a checkout that isn't installed is found from any working directory."""
    root = Path(inspectord.__file__).resolve().parent.parent
    environment = dict(os.environ)
    if root.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
    return environment
