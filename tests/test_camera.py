"""The camera process and the daemon's handle on it, with real processes and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import genicam
import pytest
from helpers_camera import ROOT, Watch, is_alive, pixels_of, write_image

from inspectord.camera import CameraProcess
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.health import backoff_s
from inspectord.ring import Ring
from inspectord.settings import FolderSource, GenicamSource, LineSource, Source

VIKY = Path(os.path.dirname(genicam.__file__)) / "viky.cti"
PART = (64, 64, 1)


def line(rate_hz: float = 100.0, parts: int | None = None) -> LineSource:
    return LineSource(rate_hz=rate_hz, parts=parts, width=64, height=64)


@pytest.fixture
def watched() -> Iterator[list[Watch]]:
    """Cameras to be stopped and rings to be closed at the end, whatever happened."""
    started: list[Watch] = []
    yield started
    for watch in started:
        watch.camera.stop()
        watch.ring.close()


def started(
    watched: list[Watch],
    source: Source,
    shape: tuple[int, int, int] = PART,
    slots: int = 4,
    hung_s: float = 4.0,
) -> Watch:
    ring = Ring.create(slots, shape)
    watch = Watch(CameraProcess("top", source, ring, hung_s=hung_s), ring)
    watched.append(watch)
    watch.camera.start()
    return watch


def test_a_line_gives_every_part_then_ends(watched: list[Watch]) -> None:
    watch = started(watched, line(parts=50))
    watch.until(lambda: watch.camera.state == "ended" and len(watch.frames) == 50)
    assert [frame.header.part_id for frame in watch.frames] == [f"{n:06d}" for n in range(1, 51)]
    assert watch.kinds() == ["running", "ended"]
    assert watch.camera.counters == {"frames": 50, "faulty": 0, "displaced": 0}
    assert watch.camera.pid is None


def test_a_folder_as_fast_as_it_goes_loses_no_image(watched: list[Watch], tmp_path: Path) -> None:
    for n in range(40):
        write_image(tmp_path / "good" / f"{n}.png", pixels_of(n, (16, 16, 1)))
    watch = started(watched, FolderSource(path=tmp_path), (16, 16, 1), slots=2)
    watch.until(lambda: watch.camera.state == "ended" and len(watch.frames) == 40)
    assert [frame.header.part_id for frame in watch.frames] == [f"good/{n}.png" for n in range(40)]
    assert {frame.header.status for frame in watch.frames} == {FrameStatus.OK}


def test_a_killed_camera_process_is_told_once_and_frames_flow_again(watched: list[Watch]) -> None:
    watch = started(watched, line())
    watch.frames_flow()
    assert watch.camera.pid is not None
    os.kill(watch.camera.pid, signal.SIGKILL)
    watch.until(lambda: watch.camera.state == "lost")
    assert watch.frames_flow(20) < 5
    watch.until(lambda: watch.camera.state == "running")
    assert [frame.header.status for frame in watch.frames].count(FrameStatus.CAMERA_LOST) == 1
    triggers = [frame.header.trigger_id for frame in watch.frames if frame.header.trigger_id != -1]
    assert triggers == list(range(1, len(triggers) + 1))
    assert watch.kinds() == ["running", "lost", "running"]
    assert "SIGKILL" in watch.camera.last_error
    assert watch.camera.restarts == 1
    assert [frame.index for frame in watch.frames] == list(range(len(watch.frames)))


def test_a_killed_genicam_camera_delivers_again_within_three_seconds(watched: list[Watch]) -> None:
    source = GenicamSource(
        cti=VIKY, serial="0", pixel_format="Mono8", features={"AcquisitionFrameRate": 20.0}
    )
    watch = started(watched, source, (400, 400, 1))
    watch.frames_flow()
    assert watch.camera.pid is not None
    os.kill(watch.camera.pid, signal.SIGKILL)
    start_s = time.monotonic()
    watch.until(lambda: watch.camera.state == "lost")
    watch.until(lambda: watch.frames[-1].header.status is FrameStatus.CAMERA_LOST)
    watch.until(lambda: watch.frames[-1].header.status is FrameStatus.OK)
    took_s = time.monotonic() - start_s
    triggers = [frame.header.trigger_id for frame in watch.frames if frame.header.trigger_id != -1]
    assert triggers == list(range(1, len(triggers) + 1))  # counted here: this camera has no counter
    print(f"viky at 20 fps: next frame {took_s:.2f} s after kill -9")
    assert took_s < 3


def test_a_loss_comes_behind_all_frames_from_before_it(watched: list[Watch]) -> None:
    watch = started(watched, line(rate_hz=1000.0), slots=64)
    watch.until(lambda: watch.camera.state == "running")
    assert watch.camera.pid is not None
    time.sleep(0.03)  # frames that nobody takes yet
    os.kill(watch.camera.pid, signal.SIGKILL)
    while watch.camera.state != "lost":
        watch.events += watch.camera.poll()
    watch.frames_flow(200)
    frame_ids = [frame.header.frame_id for frame in watch.frames if frame.header.frame_id != -1]
    assert frame_ids == list(range(1, len(frame_ids) + 1))


def test_a_frame_cut_off_in_mid_write_is_the_one_header_of_its_loss(watched: list[Watch]) -> None:
    watch = started(watched, line())
    watch.frames_flow()
    assert watch.camera.pid is not None
    os.kill(watch.camera.pid, signal.SIGKILL)
    watch.camera._process.wait()  # type: ignore[union-attr]
    cut = FrameHeader(FrameStatus.OK, 77, trigger_id=77)
    with watch.ring._lock.held():
        watch.ring._enter(cut, watch.ring._claim()[0])
    watch.until(lambda: watch.frames[-1].header.frame_id == 78)
    lost = [f.header.frame_id for f in watch.frames if f.header.status is FrameStatus.CAMERA_LOST]
    assert lost == [77]


def test_a_stopped_camera_process_counts_as_hung_and_is_replaced(watched: list[Watch]) -> None:
    watch = started(watched, line(), hung_s=1.0)
    watch.frames_flow()
    pid = watch.camera.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    watch.until(lambda: "lost" in watch.kinds())
    assert "hung" in watch.camera.last_error
    assert not is_alive(pid)
    watch.frames_flow()


def test_a_source_that_cannot_be_opened_is_one_loss_and_says_why(
    watched: list[Watch], tmp_path: Path
) -> None:
    watch = started(watched, FolderSource(path=tmp_path / "missing"))
    watch.until(lambda: watch.camera.restarts >= 2)
    assert watch.kinds() == ["lost"]
    assert "missing" in watch.camera.last_error
    assert watch.camera.state == "lost"


def test_a_source_that_comes_back_is_found_again(watched: list[Watch], tmp_path: Path) -> None:
    watch = started(watched, FolderSource(path=tmp_path / "late", loop=True), (16, 16, 1))
    watch.until(lambda: watch.camera.state == "lost")
    write_image(tmp_path / "late" / "1.png", pixels_of(1, (16, 16, 1)))
    watch.frames_flow()
    assert watch.kinds()[0] == "lost"


def test_log_lines_of_a_source_reach_the_daemon(watched: list[Watch], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    watch = started(watched, FolderSource(path=tmp_path), (16, 16, 1))
    watch.until(lambda: watch.camera.state == "ended")
    assert [event.level for event in watch.events if event.kind == "log" and "bad.png" in event.text] == [
        "warning"
    ]
    assert [frame.header.status for frame in watch.frames] == [FrameStatus.UNREADABLE]


def test_stop_leaves_no_process_even_if_it_is_stopped_itself(watched: list[Watch]) -> None:
    watch = started(watched, line())
    watch.frames_flow()
    pid = watch.camera.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    watch.camera.stop(timeout_s=0.4)
    assert not is_alive(pid)
    assert watch.camera.state == "ended"
    assert watch.camera.poll() == []


def test_stop_is_quick(watched: list[Watch]) -> None:
    watch = started(watched, line())
    watch.frames_flow()
    start_s = time.monotonic()
    watch.camera.stop()
    assert time.monotonic() - start_s < 1.0


def test_ctrl_c_is_left_to_the_daemon(watched: list[Watch]) -> None:
    watch = started(watched, line())
    watch.frames_flow()
    pid = watch.camera.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    watch.frames_flow(30)
    assert watch.camera.pid == pid


def test_sigterm_ends_a_camera_process_which_is_then_replaced(watched: list[Watch]) -> None:
    watch = started(watched, line())
    watch.frames_flow()
    assert watch.camera.pid is not None
    os.kill(watch.camera.pid, signal.SIGTERM)
    watch.until(lambda: "lost" in watch.kinds())
    watch.frames_flow()


DAEMON = """
import sys, time
from inspectord.camera import CameraProcess
from inspectord.ring import Ring
from inspectord.settings import LineSource
ring = Ring.create(4, (64, 64, 1))
camera = CameraProcess("top", LineSource(rate_hz=50, width=64, height=64), ring)
camera.start()
while camera.state != "running":
    camera.poll()
    time.sleep(0.01)
print(camera.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "hung"])
def test_a_killed_daemon_leaves_no_camera_process(stopped: bool) -> None:
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, env=environment) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        assert is_alive(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        daemon.kill()
    deadline_s = time.monotonic() + 2
    while is_alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_the_camera_process_loads_no_inference_messaging_or_camera_library_for_a_replay() -> None:
    code = (
        "import sys, inspectord.acquire, inspectord.sources.line, inspectord.sources.folder;"
        "print([m for m in ('openvino', 'zmq', 'harvesters', 'genicam', 'torch') if m in sys.modules])"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_back_off_starts_at_once_and_has_a_ceiling() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4, 50)] == [0.0, 0.5, 1.0, 2.0, 10.0]
