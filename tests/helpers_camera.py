"""Rings, frames and images for the tests of the camera's half."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from inspectord.camera import CameraEvent, CameraProcess
from inspectord.frame import Frame, FrameHeader, FrameStatus, Pixels
from inspectord.ring import Ring

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (32, 48, 1)


def header(frame_id: int, status: FrameStatus = FrameStatus.OK, **fields: object) -> FrameHeader:
    return FrameHeader(status, frame_id, **fields)  # type: ignore[arg-type]


def pixels_of(frame_id: int, shape: tuple[int, int, int] = SHAPE) -> Pixels:
    """A frame that tells its number."""
    return np.full(shape, frame_id % 256, np.uint8)


def put(ring: Ring, frame_id: int) -> FrameHeader | None:
    return ring.put(header(frame_id), pixels_of(frame_id, ring.frame_shape))


def take_all(ring: Ring) -> list[Frame]:
    frames = []
    while (frame := ring.take(0)) is not None:
        frames.append(frame)
    return frames


def run_python(
    code: str, *arguments: object, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that imports this checkout."""
    environment = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, pass_fds=pass_fds, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


class Watch:
    """Polls a camera and drains its ring, as an inspect loop does."""

    def __init__(self, camera: CameraProcess, ring: Ring) -> None:
        self.camera, self.ring = camera, ring
        self.events: list[CameraEvent] = []
        self.frames: list[Frame] = []

    def until(self, done: Callable[[], bool], timeout_s: float = 15.0) -> float:
        """Seconds until done() was true; fails after timeout_s."""
        start_s = time.monotonic()
        while not done():
            assert time.monotonic() - start_s < timeout_s, (self.camera.state, self.events, len(self.frames))
            self.events += self.camera.poll()
            frame = self.ring.take(0.01)
            if frame is not None:
                self.ring.release(frame)
                self.frames.append(frame)
        return time.monotonic() - start_s

    def frames_flow(self, count: int = 5) -> float:
        seen = len(self.frames)
        return self.until(lambda: len(self.frames) >= seen + count)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind != "log"]


def is_alive(pid: int) -> bool:
    """False for a process that is gone or waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
