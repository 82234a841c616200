"""One camera's pipeline: one verdict per frame, in order, in time, whatever the device does."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_recipe import bad_frame, good_frame, write_recipe
from structlog.testing import capture_logs

from inspectord import examine
from inspectord.examine import Examiner
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.health import Health
from inspectord.inspect import Inspector
from inspectord.messages import Reason, Verdict
from inspectord.recipe import load_recipe
from inspectord.ring import Ring
from inspectord.settings import Camera, LineSource
from inspectord.station import Outlets, Station

SHAPE = (64, 64, 1)


class Kept:
    """Takes what the publisher, journal and images get; publishing may fail."""

    def __init__(self):
        self.messages, self.journaled, self.rejected = [], [], []
        self.fails = False
        self.before_publish = False
        self.put = self.correct = self.journaled.append
        self.disk = lambda on_disk: on_disk.set()

    def begin(self, message):
        on_disk = threading.Event()
        self.journaled.append(message)
        self.disk(on_disk)
        return on_disk

    def send(self, message):
        if self.fails and message.verdict is Verdict.PASS:
            raise ValueError("can't be encoded")
        self.messages.append((message, time.monotonic_ns()))


class Unruly:
    """A real inspector that can be made slow, hanging or raising: no device does so when asked."""

    def __init__(self, inspector):
        self._inspector, self.recipe = inspector, inspector.recipe
        self.slow_s = 0.0
        self.raises = False
        self.renewed = 0

    def bind(self, slots):
        self._inspector.bind(slots)

    def start(self, slot):
        if self.raises:
            raise RuntimeError("device lost")
        self._until = time.monotonic() + self.slow_s
        self._inspector.start(slot)

    def wait(self, timeout_s):
        left_s = self._until - time.monotonic()
        if left_s > timeout_s:
            time.sleep(timeout_s)
            return False
        time.sleep(max(0.0, left_s))
        return self._inspector.wait(1.0)

    def cancel(self):
        """Ignored, as by a device that hangs."""

    def check(self, result):
        return self._inspector.check(result)

    def renew(self):
        self.renewed += 1
        self.raises = False

    def result(self):
        return self._inspector.result()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return load_recipe(write_recipe(tmp_path_factory.mktemp("recipes"), limit=0.3))


@pytest.fixture
def line(recipe):
    """A running station over a real ring and a real graph."""
    line = SimpleNamespace(ring=Ring.create(4, SHAPE), kept=Kept(), health=Health())
    line.make = lambda: Unruly(Inspector(recipe, threads=1))
    line.inspector = line.make()
    slots = [line.ring.slot(index) for index in range(4)]
    line.inspector.bind(slots)
    line.remade = []

    def remake(_):
        fresh = line.make()
        fresh.bind(slots)
        line.remade.append(fresh)
        return fresh

    line.examiner = Examiner(line.inspector, line.ring.release, remake, line.health)
    camera = Camera(name="cam1", recipe="demo", source=LineSource(), deadline_ms=100)
    outlets = Outlets(
        line.kept,
        line.kept,
        SimpleNamespace(put=line.kept.rejected.append),
    )
    line.station = Station(camera, ("s1", "0" * 32), line.ring, line.examiner, outlets)
    line.station.start(line.health)
    line.number = 0

    def put(pixels=None, status=FrameStatus.OK, fetched_ns=None):
        line.number += 1
        fetched_ns = time.monotonic_ns() if fetched_ns is None else fetched_ns
        header = FrameHeader(status, line.number, part_id=f"p{line.number}", fetched_ns=fetched_ns)
        line.ring.put(header, pixels if status is FrameStatus.OK else None)

    def until(count):
        end_s = time.monotonic() + 8
        while len(line.kept.messages) < count and time.monotonic() < end_s:
            time.sleep(0.002)
        assert len(line.kept.messages) == count
        return [message for message, _ in line.kept.messages]

    line.put, line.until = put, until
    yield line
    line.station.finish(1.0)
    line.ring.close()


def seen(messages):
    return [(str(message.verdict), str(message.reason)) for message in messages]


def test_good_passes_and_bad_is_rejected_with_its_place(line):
    line.put(good_frame())
    line.put(bad_frame())
    good, bad = line.until(2)
    assert (good.verdict, bad.verdict) == (Verdict.PASS, Verdict.REJECT)
    assert good.boxes == ()
    x, y, width, height = bad.boxes[0]
    assert x <= 16 < x + width
    assert y <= 24 < y + height
    assert bad.score > bad.limit == 0.3


def test_every_frame_gets_one_verdict_in_the_rings_order(line):
    for _ in range(300):
        while not line.ring.wait_free(1.0):
            pass
        line.put(good_frame())
    messages = line.until(300)
    assert [message.seq for message in messages] == list(range(1, 301))
    assert [message.frame_id for message in messages] == list(range(1, 301))
    assert line.kept.journaled == messages


def test_many_parts_without_an_inspection_are_told_until_they_are_inspected_again(line):
    """Of a line whose box was too slow 61 in 100 were late, and its state was ready."""

    def put(count, late=False):
        for _ in range(count):
            line.put(good_frame(), fetched_ns=time.monotonic_ns() - 10**9 if late else None)
            line.until(line.number)
        time.sleep(0.05)  # until the verdict is counted, too

    with capture_logs() as logs:
        put(18)
        put(2, late=True)
        assert line.station.uninspected == ""
        put(1, late=True)
        assert line.station.uninspected == (
            "3 of the last 20 parts were not inspected, most often late; allow more with deadline_ms, or fit "
            "a quicker recipe, as with --backbone lite"
        )
        assert not line.station.blind
        put(20)
        assert line.station.uninspected == ""
        put(10, late=True)
        assert line.station.blind
    told = [entry["event"] for entry in logs if entry["event"].startswith("parts are")]
    assert told == ["parts are not inspected", "parts are inspected again", "parts are not inspected"]


@pytest.mark.parametrize("status", [status for status in FrameStatus if status is not FrameStatus.OK])
def test_a_frame_without_pixels_is_not_inspected_and_says_why(line, status):
    line.put(status=status)
    (message,) = line.until(1)
    assert message.verdict is Verdict.NOT_INSPECTED
    assert message.reason == {"lost": "frame_lost"}.get(status.name.lower(), status.name.lower())
    assert message.score is None


def test_a_frame_that_scores_nan_is_not_inspected(line):
    """A black frame is 0/0 in this graph; OpenVINO's pooling makes -3.4e38 of it, below any limit."""
    line.put(np.zeros(SHAPE, np.uint8))
    assert seen(line.until(1)) == [("NOT_INSPECTED", "not_finite")]
    assert line.kept.messages[0][0].score is None


def test_a_late_verdict_goes_out_at_the_deadline_not_after_the_inference(line):
    """With the wait for the result unbounded, this verdict came after 500 ms."""
    line.inspector.slow_s = 0.5
    line.put(good_frame())
    (message,) = line.until(1)
    assert seen([message]) == [("NOT_INSPECTED", "late")]
    assert 99 <= (line.kept.messages[0][1] - message.t_fetch_ns) / 1e6 < 150


def test_frames_behind_a_late_one_wait_until_their_own_deadlines_and_the_slot_comes_back(line):
    line.inspector.slow_s = 0.15
    for count in (2, 4, 6, 8):  # as many late inferences as there are slots
        line.put(good_frame())
        line.put(good_frame(), fetched_ns=time.monotonic_ns() - 50_000_000)
        assert seen(line.until(count)) == [("NOT_INSPECTED", "late")] * count
        time.sleep(0.15)
    line.inspector.slow_s = 0.0
    for _ in range(8):  # so none of these would find one, had any been lost
        assert line.ring.wait_free(1.0)
        line.put(good_frame())
    assert seen(line.until(16))[8:] == [("PASS", "within_limit")] * 8


def test_a_frame_that_comes_late_is_not_even_started(line):
    line.put(good_frame(), fetched_ns=time.monotonic_ns() - 200_000_000)
    (message,) = line.until(1)
    assert seen([message]) == [("NOT_INSPECTED", "late")]
    assert message.inference_ms is None


def test_an_inference_that_raises_costs_one_part(line):
    line.inspector.raises = True
    line.put(good_frame())
    line.until(1)
    line.put(good_frame())
    assert seen(line.until(2)) == [("NOT_INSPECTED", "inference_failed"), ("PASS", "within_limit")]
    assert line.inspector.renewed == 1


def test_an_inference_that_hangs_is_replaced_and_its_parts_are_not_inspected(line, monkeypatch):
    monkeypatch.setattr(examine, "HANG_S", 0.3)
    line.inspector.slow_s = 1e9
    line.put(good_frame())
    line.until(1)
    time.sleep(0.6)
    line.put(good_frame())
    assert seen(line.until(2)) == [("NOT_INSPECTED", "late"), ("PASS", "within_limit")]
    assert line.examiner.hangs == 1
    assert examine.left_behind.pop() is line.inspector


def test_hanging_again_and_again_asks_for_a_fresh_process(line, monkeypatch):
    monkeypatch.setattr(examine, "HANG_S", 0.12)
    monkeypatch.setattr(examine, "MOST_HANGS", 0)
    line.inspector.slow_s = 1e9
    line.put(good_frame())
    line.until(1)
    time.sleep(0.3)
    assert "hung" in line.health.failure
    examine.left_behind.clear()


def test_a_verdict_that_can_not_be_encoded_goes_out_as_not_inspected_with_the_same_seq(line):
    line.kept.fails = True
    line.put(good_frame())
    line.until(1)  # telling the error on a console takes longer than a deadline
    line.put(bad_frame())
    messages = line.until(2)
    assert seen(messages) == [("NOT_INSPECTED", "inference_failed"), ("REJECT", "over_limit")]
    assert [message.seq for message in messages] == [1, 2]


def test_a_rejects_pixels_are_copied_before_its_slot_is_used_again(line):
    line.put(bad_frame())
    line.until(1)
    for _ in range(6):
        assert line.ring.wait_free(1.0)
        line.put(good_frame())
    line.until(7)
    assert np.array_equal(line.kept.rejected[0].pixels, bad_frame())


def test_frames_left_at_the_end_still_get_their_verdicts(line):
    line.inspector.slow_s = 0.05
    for _ in range(4):
        line.put(good_frame())
    line.station.finish(0.06)
    reasons = [message.reason for message, _ in line.kept.messages]
    assert len(reasons) == 4
    assert reasons[0] is Reason.WITHIN_LIMIT
    assert reasons[-1] is Reason.STOPPING


def test_a_new_model_takes_over_between_two_frames(line):
    other = line.make()
    other.bind([line.ring.slot(index) for index in range(4)])
    done = []
    swapping = threading.Thread(target=lambda: done.append(line.examiner.swap(other)))
    swapping.start()
    for number in range(20):
        assert line.ring.wait_free(1.0)
        line.put(good_frame(seed=number))
    swapping.join()
    assert done == [True]
    assert {message.verdict for message in line.until(20)} == {Verdict.PASS}


def test_a_line_that_is_too_fast_for_its_model_can_still_change_it(line):
    """With models changed only while no inference runs between two frames, this swap never came about."""
    line.inspector.slow_s = 0.3
    other = line.make()
    other.bind([line.ring.slot(index) for index in range(4)])
    done = []
    line.put(good_frame())
    swapping = threading.Thread(target=lambda: done.append(line.examiner.swap(other, 3.0)))
    swapping.start()
    while swapping.is_alive():
        line.put(good_frame())
        time.sleep(0.05)
    assert done == [True]


def test_a_swap_that_was_refused_does_not_come_about_later(line, recipe):
    line.inspector.slow_s = 0.3
    other = line.make()
    line.put(good_frame())
    time.sleep(0.02)
    assert not line.examiner.swap(other, timeout_s=0.01)
    line.until(1)
    time.sleep(0.4)
    line.put(good_frame())
    line.until(2)
    assert line.examiner._inspector is line.inspector


def test_a_model_compiled_after_a_hang_does_not_undo_a_reload(line, monkeypatch):
    monkeypatch.setattr(examine, "HANG_S", 0.2)
    compiled, remake = threading.Event(), line.examiner._remake
    line.examiner._remake = lambda recipe: (compiled.wait(5), remake(recipe))[1]
    line.inspector.slow_s = 1e9
    line.put(good_frame())
    line.until(1)
    time.sleep(0.3)
    other = line.make()
    other.bind([line.ring.slot(index) for index in range(4)])
    assert line.examiner.swap(other)
    compiled.set()
    time.sleep(0.3)
    assert line.remade
    assert line.examiner._inspector is other
    examine.left_behind.clear()


def test_at_the_end_nobody_waits_for_a_swap_and_a_running_model_is_left_behind(line):
    line.inspector.slow_s = 1.0
    line.put(good_frame())
    line.until(1)
    line.station.finish(0.1)
    assert examine.left_behind.pop() is line.inspector
    began_s = time.monotonic()
    assert not line.examiner.swap(line.make())
    assert time.monotonic() - began_s < 0.5


def test_before_publish_a_verdict_goes_out_once_its_row_is_on_the_disk(line):
    line.kept.before_publish = True
    seen_at_begin = []

    def disk(on_disk):
        seen_at_begin.append(len(line.kept.messages))
        threading.Timer(0.03, on_disk.set).start()

    line.kept.disk = disk
    line.put(good_frame())
    line.put(bad_frame())
    good, bad = line.until(2)
    assert (good.verdict, bad.verdict) == (Verdict.PASS, Verdict.REJECT)
    assert seen_at_begin == [0, 1]
    assert line.kept.messages[0][1] - good.t_decided_ns > 25e6
    assert line.kept.journaled == [good, bad]


@pytest.mark.parametrize("frame", [good_frame(), bad_frame()], ids=["good", "bad"])
def test_before_publish_a_row_that_is_not_on_the_disk_in_time_is_no_verdict(line, frame):
    """The journal keeps both: what was decided, and last what was published."""
    line.kept.before_publish = True
    line.kept.disk = lambda on_disk: None
    line.put(frame)
    (message,) = line.until(1)
    assert seen([message]) == [("NOT_INSPECTED", "not_journaled")]
    assert 99 <= (line.kept.messages[0][1] - message.t_fetch_ns) / 1e6 < 150
    time.sleep(0.05)
    decided, published = line.kept.journaled
    assert decided.verdict is not Verdict.NOT_INSPECTED
    assert (published, decided.seq) == (message, message.seq)


def test_before_publish_with_a_full_queue_nothing_passes_and_nobody_waits(line):
    line.kept.before_publish = True
    line.kept.begin = lambda message: None
    line.put(good_frame())
    (message,) = line.until(1)
    assert seen([message]) == [("NOT_INSPECTED", "not_journaled")]
    assert line.kept.messages[0][1] - message.t_fetch_ns < 90e6
    time.sleep(0.05)
    assert line.kept.journaled == [message]


def test_before_publish_a_part_that_was_not_inspected_keeps_its_reason(line):
    line.kept.before_publish = True
    line.kept.disk = lambda on_disk: None
    line.put(status=FrameStatus.INCOMPLETE)
    assert seen(line.until(1)) == [("NOT_INSPECTED", "incomplete")]
    time.sleep(0.05)
    assert len(line.kept.journaled) == 1


def test_before_publish_what_can_not_be_sent_is_corrected_in_the_journal(line):
    line.kept.before_publish = line.kept.fails = True
    line.put(good_frame())
    line.until(1)
    time.sleep(0.05)
    assert seen(line.kept.journaled) == [("PASS", "within_limit"), ("NOT_INSPECTED", "inference_failed")]


def test_before_publish_a_long_wait_for_the_disk_is_no_stuck_thread(line):
    line.kept.before_publish = True
    line.kept.disk = lambda on_disk: None
    line.station._camera = line.station._camera.model_copy(update={"deadline_ms": 800})
    line.put(good_frame())
    oldest = 0.0
    while not line.kept.messages:
        oldest = max(oldest, line.health.ages_s()["inspect-cam1"])
        time.sleep(0.01)
    assert oldest < 0.4
