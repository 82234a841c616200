"""The ring: every trigger in order, nothing lost without a word, and a dead producer mended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from helpers_camera import SHAPE, header, pixels_of, put, run_python, take_all

from inspectord.errors import RingError
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.memory import free_bytes
from inspectord.ring import Ring


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring.create(3, SHAPE)
    yield ring
    ring.close()


def test_a_frame_comes_out_as_it_went_in(ring: Ring) -> None:
    given = FrameHeader(FrameStatus.OK, 7, 8, 9, "good/0001.png", 10, 11, True)
    ring.put(given, pixels_of(7))
    frame = ring.take(0)
    assert frame is not None
    assert frame.slot is not None
    assert frame.header == given
    assert frame.index == 0
    assert (ring.slot(frame.slot)[0] == 7).all()


def test_frames_come_in_order_with_gapless_indices(ring: Ring) -> None:
    for frame_id in range(10, 30):
        put(ring, frame_id)
        frame = ring.take(0)
        assert frame is not None
        assert (frame.index, frame.header.frame_id) == (frame_id - 10, frame_id)
        ring.release(frame)


def test_an_empty_ring_gives_nothing_within_the_timeout(ring: Ring) -> None:
    start_s = time.monotonic()
    assert ring.take(0.05) is None
    assert 0.04 < time.monotonic() - start_s < 0.5


def test_a_waiting_consumer_wakes_at_once(ring: Ring) -> None:
    put_at_s: list[float] = []

    def later() -> None:
        time.sleep(0.1)
        put_at_s.append(time.monotonic())
        put(ring, 1)

    threading.Thread(target=later).start()
    assert ring.take(5.0) is not None
    assert time.monotonic() - put_at_s[0] < 0.05


def test_slots_are_aligned_writable_and_contiguous(ring: Ring) -> None:
    odd = Ring.create(2, (5, 7, 3))
    for i in range(2):
        slot = odd.slot(i)
        assert slot.shape == (1, 5, 7, 3)
        assert slot.ctypes.data % 64 == 0
        assert slot.flags.writeable
        assert slot.flags.c_contiguous
    odd.close()


def test_a_full_ring_displaces_the_oldest_frame_and_returns_its_header(ring: Ring) -> None:
    assert [put(ring, i) for i in (1, 2, 3)] == [None, None, None]
    displaced = put(ring, 4)
    assert displaced is not None
    assert (displaced.frame_id, displaced.status) == (1, FrameStatus.DISPLACED)


def test_a_displaced_frame_still_comes_in_order_without_pixels(ring: Ring) -> None:
    for i in (1, 2, 3, 4):
        put(ring, i)
    frames = take_all(ring)
    assert [frame.header.frame_id for frame in frames] == [1, 2, 3, 4]
    assert [frame.header.status for frame in frames] == [FrameStatus.DISPLACED] + [FrameStatus.OK] * 3
    assert [frame.slot is None for frame in frames] == [True, False, False, False]
    assert [int(ring.slot(f.slot)[0, 0, 0, 0]) for f in frames if f.slot is not None] == [2, 3, 4]


def test_a_taken_frame_is_never_displaced(ring: Ring) -> None:
    put(ring, 1)
    taken = ring.take(0)
    assert taken is not None
    assert taken.slot is not None
    for i in range(2, 20):
        put(ring, i)
    assert (ring.slot(taken.slot) == 1).all()


def test_with_every_slot_taken_the_new_frame_itself_is_displaced(ring: Ring) -> None:
    for i in (1, 2, 3):
        put(ring, i)
    take_all(ring)
    displaced = put(ring, 4)
    assert displaced is not None
    assert displaced.frame_id == 4
    frame = ring.take(0)
    assert frame is not None
    assert (frame.header.status, frame.slot) == (FrameStatus.DISPLACED, None)


def test_a_header_without_pixels_takes_no_slot(ring: Ring) -> None:
    for i in range(10):
        assert ring.put(header(i, FrameStatus.LOST)) is None
    assert [frame.slot for frame in take_all(ring)] == [None] * 10


def test_pixels_of_a_faulty_frame_are_left_out(ring: Ring) -> None:
    ring.put(header(1, FrameStatus.INCOMPLETE), pixels_of(1))
    frame = ring.take(0)
    assert frame is not None
    assert frame.slot is None


def test_a_stalled_consumer_still_gets_one_frame_for_each_index() -> None:
    ring = Ring.create(2, SHAPE, headers=8)
    for i in range(50):
        put(ring, i)
    frames = take_all(ring)
    assert [frame.index for frame in frames] == list(range(50))
    assert [frame.header.frame_id for frame in frames[:42]] == [-1] * 42
    assert {frame.header.status for frame in frames[:48]} == {FrameStatus.DISPLACED}
    assert [frame.header.frame_id for frame in frames if frame.slot is not None] == [48, 49]
    ring.close()


def test_slots_of_an_overrun_header_table_come_free() -> None:
    ring = Ring.create(2, SHAPE, headers=4)
    put(ring, 0)
    put(ring, 1)
    for i in range(10):
        ring.put(header(i, FrameStatus.LOST))
    assert put(ring, 20) is None
    assert put(ring, 21) is None
    ring.close()


def test_a_replay_waits_for_room_and_displaces_nothing(ring: Ring) -> None:
    for i in (1, 2, 3):
        assert ring.wait_free(0)
        put(ring, i)
    assert not ring.wait_free(0.01)
    frame = ring.take(0)
    assert frame is not None
    assert not ring.wait_free(0.01)
    ring.release(frame)
    assert ring.wait_free(0)


def test_a_replay_as_fast_as_inspected_waits_until_every_slot_is_free(ring: Ring) -> None:
    put(ring, 1)
    assert not ring.wait_free(0, ring.slots)
    frame = ring.take(0)
    assert frame is not None
    assert not ring.wait_free(0, ring.slots)
    ring.release(frame)
    assert ring.wait_free(0, ring.slots)


def test_a_frame_released_twice_frees_no_newer_frame(ring: Ring) -> None:
    put(ring, 1)
    first = ring.take(0)
    assert first is not None
    ring.release(first)
    for i in (2, 3, 4):
        put(ring, i)
    newer = take_all(ring)
    ring.release(first)
    assert not ring.wait_free(0)
    ring.release(newer[0])
    assert ring.wait_free(0)


def test_a_frame_of_another_shape_is_refused(ring: Ring) -> None:
    with pytest.raises(RingError, match="shape"):
        ring.put(header(1), np.zeros((1, 2, 1), np.uint8))


@pytest.mark.parametrize(
    ("part_id", "kept"),
    [
        ("", ""),
        ("x" * 80, "x" * 80),
        ("start/" + "y" * 80, "y" * 80),
        ("é" + "z" * 79, "z" * 79),
        ("日" * 27, "日" * 26),
    ],
)
def test_a_long_part_id_keeps_its_end(ring: Ring, part_id: str, kept: str) -> None:
    ring.put(header(1, part_id=part_id), pixels_of(1))
    frame = ring.take(0)
    assert frame is not None
    assert frame.header.part_id == kept


def test_too_little_memory_is_an_error_with_a_next_step_and_not_a_killed_process() -> None:
    side = int((free_bytes() / 4) ** 0.5)
    with pytest.raises(RingError, match="lower ring_slots") as caught:
        Ring.create(8, (side, side, 1))
    assert caught.value.exit_code == 71


def test_another_kind_of_memory_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 8192)
    with pytest.raises(RingError, match="version"):
        Ring.attach(fd, fd)
    os.close(fd)


def test_nothing_is_left_in_shared_memory_folders(ring: Ring) -> None:
    assert not [name for name in os.listdir("/dev/shm") if "ring" in name]


PRODUCER = """
import sys, numpy as np
from helpers_camera import put
from inspectord.ring import Ring
ring = Ring.attach(int(sys.argv[1]), int(sys.argv[2]))
for frame_id in range(int(sys.argv[3])):
    ring.wait_free(10)
    put(ring, frame_id)
"""


def test_two_processes_share_every_frame_unspoilt() -> None:
    ring = Ring.create(3, (64, 64, 3))
    ids: list[int] = []

    def consume() -> None:
        while len(ids) < 2000 and (frame := ring.take(20.0)) is not None:
            assert frame.slot is not None
            assert (ring.slot(frame.slot) == frame.header.frame_id % 256).all()
            ids.append(frame.header.frame_id)
            ring.release(frame)

    consumer = threading.Thread(target=consume)
    consumer.start()
    run = run_python(PRODUCER, *ring.fds, 2000, pass_fds=ring.fds)
    consumer.join()
    assert run.returncode == 0, run.stderr
    assert ids == list(range(2000))
    ring.close()


KILLED_IN_MID_WRITE = """
import os, signal, sys
import inspectord.ring
from helpers_camera import put
ring = inspectord.ring.Ring.attach(int(sys.argv[1]), int(sys.argv[2]))
put(ring, 1)
inspectord.ring.np.copyto = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
put(ring, 2)
"""


def test_a_producer_killed_in_mid_write_costs_one_frame_that_is_told() -> None:
    ring = Ring.create(2, SHAPE)
    assert run_python(KILLED_IN_MID_WRITE, *ring.fds, pass_fds=ring.fds).returncode == -9
    first, nothing = ring.take(0), ring.take(0)
    assert first is not None
    assert nothing is None
    ring.recover()
    lost = ring.take(0)
    assert lost is not None
    assert (lost.index, lost.header.frame_id, lost.slot) == (1, 2, None)
    assert lost.header.status is FrameStatus.CAMERA_LOST
    ring.release(first)
    assert run_python(PRODUCER, *ring.fds, 2, pass_fds=ring.fds).returncode == 0
    assert [frame.header.status for frame in take_all(ring)] == [FrameStatus.OK, FrameStatus.OK]
    ring.close()


# Kills a producer after each executed line of put(), one fork per line, in four states of the ring.
KILLED_AT_EVERY_LINE = """
import os, signal, sys
from helpers_camera import header, pixels_of, take_all
from inspectord.frame import FrameStatus
from inspectord.ring import Ring

def put(ring, frame_id):
    trigger_id = -1 if frame_id == 2 else frame_id + 1  # as of a lost camera, which counts nothing
    return ring.put(header(frame_id, trigger_id=trigger_id), pixels_of(frame_id, ring.frame_shape))

def die_after(lines):
    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("ring.py", "ring_layout.py")):
            return None
        if event == "line":
            lines -= 1
            if lines < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

def produce(ring, frame_id, lines):
    pid = os.fork()
    if pid == 0:
        die_after(lines)
        put(ring, frame_id)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def check(before, headers, lines):
    ring = Ring.create(2, (8, 8, 1), headers)
    for frame_id in range(before):
        put(ring, frame_id)
    exit_code = produce(ring, before, lines)
    ring.recover()
    counted = ring.last_trigger
    put(ring, 100)
    frames = take_all(ring)
    assert counted == max([0, *(frame.header.trigger_id for frame in frames[:-1])]), (counted, frames)
    assert [frame.index for frame in frames] == list(range(len(frames))), frames
    assert len(frames) in (before + 1, before + 2), frames
    assert frames[-1].slot is not None and frames[-1].header.frame_id == 100
    held = [frame for frame in frames if frame.slot is not None]
    assert len({frame.slot for frame in held}) == len(held), frames
    for frame in held:
        assert (ring.slot(frame.slot) == frame.header.frame_id).all(), frame
        ring.release(frame)
    assert ring.wait_free(0)
    assert put(ring, 101) is None and put(ring, 102) is None
    ring.close()
    return exit_code == 0

kills = 0
for before, headers in ((0, 8), (1, 8), (2, 8), (5, 3)):
    lines = 0
    while not check(before, headers, lines):
        lines += 1
    kills += lines
print(kills)
"""


def test_a_producer_killed_at_any_line_leaves_a_ring_that_recovers() -> None:
    run = run_python(KILLED_AT_EVERY_LINE)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100


def test_a_stopped_producer_with_the_lock_does_not_stop_the_consumer() -> None:
    ring = Ring.create(3, SHAPE)
    pid = os.fork()
    if pid == 0:
        import inspectord.ring as module

        put(ring, 1)
        module.fill = lambda *_: os.kill(os.getpid(), 19)
        put(ring, 2)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    start_s = time.monotonic()
    assert ring.take(0.2) is None
    assert time.monotonic() - start_s < 1.0
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    ring.recover()
    frame = ring.take(0)
    assert frame is not None
    assert frame.header.frame_id == 1
    ring.close()
