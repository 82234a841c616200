"""Cameras: pixel formats against plain bit arithmetic, features read back, frames of a simulated camera."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import genicam
import numpy as np
import pytest
from genicam import gentl

from inspectord.errors import FrameError, SourceError
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.settings import GenicamSource, Trigger
from inspectord.sources import Item, open_source
from inspectord.sources.device import choose
from inspectord.sources.features import configure, set_feature
from inspectord.sources.frame_ids import FrameIds
from inspectord.sources.genicam import GenicamFrames
from inspectord.sources.pixels import BITS, convert

VIKY = Path(os.path.dirname(genicam.__file__)) / "viky.cti"


# --- pixel formats ---


def lsb_packed(values: list[int], bits: int) -> bytes:
    """PFNC "p" formats: one stream of bits, the least significant first."""
    stream = sum(value << (i * bits) for i, value in enumerate(values))
    return stream.to_bytes(-(-len(values) * bits // 8), "little")


def gige_packed(values: list[int], bits: int) -> bytes:
    """GigE Vision 1.x: the high 8 bits of two pixels around a byte of their low bits."""
    data = b""
    low = bits - 8
    for i in range(0, len(values), 2):
        pair = values[i : i + 2]
        middle = sum((value & (1 << low) - 1) << (4 * j) for j, value in enumerate(pair))
        data += bytes([pair[0] >> low, middle, *(value >> low for value in pair[1:])])
    return data


def two_bytes(values: list[int], bits: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


PACKERS: dict[str, tuple[int, Callable[[list[int], int], bytes]]] = {
    "Mono8": (8, lambda values, bits: bytes(values)),
    "Mono10": (10, two_bytes),
    "Mono12": (12, two_bytes),
    "Mono10p": (10, lsb_packed),
    "Mono12p": (12, lsb_packed),
    "Mono10Packed": (10, gige_packed),
    "Mono12Packed": (12, gige_packed),
}


@pytest.mark.parametrize("padding_x", [0, 1, 6])
@pytest.mark.parametrize(("width", "height"), [(8, 3), (7, 5), (5, 4), (1, 1), (640, 2)])
@pytest.mark.parametrize("name", PACKERS)
def test_grey_formats_keep_their_high_eight_bits(name: str, width: int, height: int, padding_x: int) -> None:
    bits, pack = PACKERS[name]
    values = np.random.default_rng(width).integers(0, 1 << bits, (height, width))
    if padding_x:
        data = b"".join(pack(row.tolist(), bits) + b"\xa5" * padding_x for row in values)
    else:
        data = pack(values.ravel().tolist(), bits)
    image = convert(name, np.frombuffer(data, np.uint8), width, height, padding_x)
    assert image.dtype == np.uint8
    assert image.shape == (height, width, 1)
    assert image[:, :, 0].tolist() == (values >> (bits - 8)).tolist()


@pytest.mark.parametrize(
    ("name", "order"),
    [("RGB8", (2, 1, 0)), ("BGR8", (0, 1, 2)), ("RGBa8", (2, 1, 0)), ("BGRa8", (0, 1, 2))],
)
@pytest.mark.parametrize("padding_x", [0, 3])
def test_colour_formats_become_bgr(name: str, order: tuple[int, int, int], padding_x: int) -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    sent = bgr[:, :, list(order)]
    if name.endswith("a8"):
        sent = np.dstack([sent, np.full((5, 7), 9, np.uint8)])
    rows = np.pad(sent.reshape(5, -1), ((0, 0), (0, padding_x)))
    assert (convert(name, rows.ravel(), 7, 5, padding_x) == bgr).all()


@pytest.mark.parametrize("name", ["BayerRG8", "BayerGR8", "BayerGB8", "BayerBG8"])
def test_bayer_mosaics_give_back_a_plain_colour(name: str) -> None:
    bgr = {"B": 40, "G": 90, "R": 200}
    first, second = name[5], name[6]
    rows = {"RG": ("RG", "GB"), "GR": ("GR", "BG"), "GB": ("GB", "RG"), "BG": ("BG", "GR")}[first + second]
    mosaic = np.array([[bgr[rows[y % 2][x % 2]] for x in range(12)] for y in range(8)], np.uint8)
    image = convert(name, mosaic.ravel(), 12, 8)
    assert image.shape == (8, 12, 3)
    assert (image[2:-2, 2:-2] == (40, 90, 200)).all()


@pytest.mark.parametrize("name", BITS)
def test_a_converted_frame_owns_its_memory(name: str) -> None:
    data = np.full(8 * 8 * 4, 255, np.uint8)
    image = convert(name, data, 8, 8)
    before = image.copy()
    data[:] = 0
    assert (image == before).all()
    assert image.flags.c_contiguous


def test_a_short_buffer_and_an_unknown_format_are_named() -> None:
    with pytest.raises(FrameError, match="holds 10 bytes of 64"):
        convert("Mono8", np.zeros(10, np.uint8), 8, 8)
    with pytest.raises(FrameError, match=r"Coord3D_C16.*set PixelFormat"):
        convert("Coord3D_C16", np.zeros(128, np.uint8), 8, 8)


def test_mono12p_of_five_megapixels_takes_no_frame_period() -> None:
    data = np.zeros(2592 * 1944 * 3 // 2, np.uint8)
    convert("Mono12p", data, 2592, 1944)
    start_s = time.perf_counter()
    convert("Mono12p", data, 2592, 1944)
    assert time.perf_counter() - start_s < 0.1


# --- frame ids ---


def losses(*ids: int) -> list[list[int]]:
    follow = FrameIds()
    return [follow.lost_before(frame_id) for frame_id in ids]


def test_a_gap_in_frame_ids_is_that_many_lost_frames() -> None:
    assert losses(5, 6, 9, 10) == [[], [], [7, 8], []]


def test_sixteen_bit_ids_wrap_to_one_and_leave_out_zero() -> None:
    assert losses(65534, 65535, 1, 2) == [[], [], [], []]
    assert losses(65533, 2) == [[], [65534, 65535, 1]]
    assert losses(65535, 0, 1) == [[], [], []]


def test_ids_that_go_back_or_far_ahead_are_a_reset_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert losses(500, 1, 2) == [[], [], []]
        assert losses(5, 20_000, 20_001) == [[], [], []]
    assert len(caplog.records) == 2


def test_a_camera_without_frame_ids_loses_nothing() -> None:
    assert losses(0, 0, 0) == [[], [], []]


def test_an_incomplete_frame_is_not_counted_as_lost_as_well() -> None:
    follow = FrameIds()
    follow.lost_before(10)
    assert follow.skip_one() == 11
    assert follow.lost_before(12) == []
    follow.skip_one()
    assert follow.lost_before(16) == [14, 15]


def test_ids_count_once_two_frames_have_shown_different_ones() -> None:
    follow = FrameIds()
    for _ in range(2):  # a producer without ids
        follow.lost_before(0)
        follow.skip_one()
    follow.lost_before(0)
    assert not follow.counts
    follow.lost_before(1)
    assert follow.counts


# --- features ---


class FakeNode:
    """A GenICam node that notes what is set; keep turns the wanted value into the kept one."""

    def __init__(self, name: str, calls: list[tuple[str, Any]], keep: Callable[[Any], Any]) -> None:
        self._name, self._calls, self._keep, self._value = name, calls, keep, None

    @property
    def value(self) -> Any:
        return self._value

    @value.setter
    def value(self, wanted: Any) -> None:
        self._calls.append((self._name, wanted))
        self._value = self._keep(wanted)


class FakeNodes:
    def __init__(self, *names: str, **keep: Callable[[Any], Any]) -> None:
        self.calls: list[tuple[str, Any]] = []
        for name in names:
            setattr(self, name, FakeNode(name, self.calls, lambda wanted: wanted))
        for name, kept in keep.items():
            setattr(self, name, FakeNode(name, self.calls, kept))


TRIGGER_NODES = ("TriggerSelector", "TriggerMode", "TriggerSource", "TriggerActivation")


def source(**settings: Any) -> GenicamSource:
    return GenicamSource(cti=VIKY, **settings)


def test_trigger_nodes_are_set_in_the_standard_order_after_the_features() -> None:
    nodes = FakeNodes("ExposureTime", "Gain", "PixelFormat", *TRIGGER_NODES)
    configure(
        nodes, source(pixel_format="Mono8", features={"ExposureTime": 500.0, "Gain": 2}, trigger=Trigger())
    )
    assert nodes.calls == [
        ("PixelFormat", "Mono8"),
        ("ExposureTime", 500.0),
        ("Gain", 2),
        ("TriggerSelector", "FrameStart"),
        ("TriggerMode", "On"),
        ("TriggerSource", "Line1"),
        ("TriggerActivation", "RisingEdge"),
    ]


def test_a_free_running_camera_gets_its_trigger_switched_off() -> None:
    nodes = FakeNodes("AcquisitionMode", *TRIGGER_NODES)
    configure(nodes, source())
    assert nodes.calls == [
        ("AcquisitionMode", "Continuous"),
        ("TriggerSelector", "FrameStart"),
        ("TriggerMode", "Off"),
    ]


def test_a_value_that_is_not_kept_is_an_error_with_wanted_and_got() -> None:
    with pytest.raises(SourceError, match=r"ExposureTime: wanted 500.0, got 100.0"):
        set_feature(FakeNodes(ExposureTime=lambda wanted: 100.0), "ExposureTime", 500.0)
    with pytest.raises(SourceError, match="TriggerSource: wanted 'Line1', got 'Line0'"):
        configure(
            FakeNodes(*TRIGGER_NODES[:2], TriggerSource=lambda wanted: "Line0"), source(trigger=Trigger())
        )


def test_a_float_may_be_rounded_to_the_cameras_own_step() -> None:
    set_feature(FakeNodes(ExposureTime=lambda wanted: 499.2), "ExposureTime", 500.0)


def test_a_missing_trigger_node_is_named() -> None:
    with pytest.raises(SourceError, match="no feature TriggerSelector"):
        configure(FakeNodes(), source(trigger=Trigger()))


def test_a_software_trigger_needs_a_rate_and_no_activation() -> None:
    nodes = FakeNodes(*TRIGGER_NODES)
    configure(nodes, source(trigger=Trigger(source="Software", software_rate_hz=5)))
    assert "TriggerActivation" not in dict(nodes.calls)
    with pytest.raises(SourceError, match="software_rate_hz"):
        configure(FakeNodes(*TRIGGER_NODES), source(trigger=Trigger(source="Software")))


def test_true_executes_a_command() -> None:
    done: list[str] = []
    set_feature(
        SimpleNamespace(UserSetLoad=SimpleNamespace(execute=lambda: done.append("load"))), "UserSetLoad", True
    )
    assert done == ["load"]


def test_chunks_are_enabled_one_by_one_where_the_camera_has_them() -> None:
    def only_encoder(wanted: str) -> str:
        if wanted != "EncoderValue":
            raise ValueError("no such chunk")
        return wanted

    nodes = FakeNodes("ChunkModeActive", "ChunkEnable", ChunkSelector=only_encoder)
    configure(nodes, source(chunks=True))
    assert nodes.calls[0] == ("ChunkModeActive", True)
    assert nodes.calls.count(("ChunkEnable", True)) == 1


# --- choice of a device ---


def info(serial: str, model: str = "acA", user_id: str | None = None) -> SimpleNamespace:
    known = {"serial_number": serial, "model": model, "user_defined_name": user_id, "id_": f"id{serial}"}
    return SimpleNamespace(property_dict=known)


def test_a_camera_is_chosen_by_serial_model_or_user_id() -> None:
    infos = [info("1"), info("2", "acB"), info("3", user_id="top")]
    assert choose(infos, source(serial="1")) is infos[0]
    assert choose(infos, source(model="acB")) is infos[1]
    assert choose(infos, source(user_id="top")) is infos[2]
    assert choose(infos[:1], source()) is infos[0]


def test_no_match_and_two_matches_list_what_is_there() -> None:
    infos = [info("1"), info("2", user_id="top")]
    with pytest.raises(SourceError, match=r"no camera matches.*'9'.*serial '1'.*serial '2', user_id 'top'"):
        choose(infos, source(serial="9"))
    with pytest.raises(SourceError, match=r"2 cameras match.*set serial.*'1'.*'2'"):
        choose(infos, source())
    with pytest.raises(SourceError, match="no camera at all"):
        choose([], source())


# --- the simulated producer ---


def fetch(camera: Any, count: int) -> list[Item]:
    items: list[Item] = []
    deadline_s = time.monotonic() + 5
    while len(items) < count and time.monotonic() < deadline_s:
        item = camera.next(0.2)
        if item is not None:
            items.append((item[0], None if item[1] is None else item[1].copy()))
    return items


def viky(rate_hz: float = 100.0, **settings: Any) -> GenicamSource:
    settings = {"serial": "0", "pixel_format": "Mono8"} | settings
    return source(features={"AcquisitionFrameRate": rate_hz}, **settings)


def test_a_simulated_camera_delivers_grey_frames_in_order() -> None:
    before_ns = time.monotonic_ns()
    with open_source(viky(), (400, 400, 1)) as camera:
        items = fetch(camera, 20)
    ids = [header.frame_id for header, _ in items]
    assert ids == list(range(ids[0], ids[0] + 20))
    assert {header.status for header, _ in items} == {FrameStatus.OK}
    assert all(pixels is not None and pixels.shape == (400, 400, 1) for _, pixels in items)
    assert before_ns < items[0][0].fetched_ns < items[-1][0].fetched_ns < time.monotonic_ns()
    assert items[0][0].exposed_ns == 0


def test_the_ball_of_the_simulated_camera_moves_and_its_colour_survives() -> None:
    with open_source(viky(pixel_format="RGBa8"), (400, 400, 3)) as camera:
        items = fetch(camera, 20)
    first, last = items[0][1], items[-1][1]
    assert first is not None
    assert last is not None
    assert (first != last).any()
    grey = cv2.cvtColor(last, cv2.COLOR_BGR2GRAY)
    coloured = last[last.max(axis=2).astype(int) - last.min(axis=2) > 60].reshape(-1, 3)
    assert grey.shape == (400, 400)
    assert coloured.mean(axis=0).argmax() == 2  # the red camera; BGR


def test_frames_that_the_camera_could_not_deliver_come_as_lost_headers() -> None:
    with open_source(viky(rate_hz=200.0, buffers=2), (400, 400, 1)) as camera:
        items = fetch(camera, 3)
        time.sleep(0.3)
        items += fetch(camera, 40)
    ids = [header.frame_id for header, _ in items]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    lost = [header for header, pixels in items if pixels is None]
    assert len(lost) > 10
    assert {header.status for header in lost} == {FrameStatus.LOST}


def test_a_camera_that_does_not_fit_the_recipe_says_so_frame_by_frame() -> None:
    with open_source(viky(), (256, 256, 1)) as camera:
        items = fetch(camera, 3)
    assert [header.status for header, _ in items] == [FrameStatus.WRONG_SHAPE] * 3


def test_without_a_recipe_the_camera_gives_the_shape() -> None:
    with open_source(viky(), None) as camera:
        assert fetch(camera, 1)[0][1] is not None


def test_ctrl_c_is_still_python_s_after_a_camera_is_opened() -> None:
    before = signal.getsignal(signal.SIGINT)
    with open_source(viky(), None):
        assert signal.getsignal(signal.SIGINT) is before


def test_a_trigger_that_the_camera_lacks_is_an_error_and_frees_the_camera() -> None:
    with pytest.raises(SourceError, match="TriggerSelector"), open_source(viky(trigger=Trigger()), None):
        pass
    with open_source(viky(), None) as camera:
        assert len(fetch(camera, 2)) == 2


def test_an_open_camera_can_be_opened_again_after_its_close() -> None:
    for _ in range(3):
        with open_source(viky(), None) as camera:
            assert len(fetch(camera, 2)) == 2


def test_a_missing_producer_and_an_unknown_serial_are_named(tmp_path: Path) -> None:
    with (
        pytest.raises(SourceError, match=r"no GenTL producer .*maker\.cti"),
        open_source(GenicamSource(cti=tmp_path / "maker.cti"), None),
    ):
        pass
    with (
        pytest.raises(SourceError, match=r"serial '0'.*serial '1'.*serial '2'"),
        open_source(viky(serial="77"), None),
    ):
        pass


def test_a_file_that_is_no_producer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.cti"
    path.write_text("no library")
    with (
        pytest.raises(SourceError, match=r"can't load .*broken\.cti"),
        open_source(GenicamSource(cti=path), None),
    ):
        pass


def test_a_feature_out_of_range_is_named_with_the_cameras_reason() -> None:
    with (
        pytest.raises(SourceError, match=r"refuses Width = 100000.*Max = 800"),
        open_source(source(serial="0", features={"Width": 100000}), None),
    ):
        pass


# --- a camera that fails ---


class FakeAcquirer:
    """Delivers buffers from a list; an "incomplete" calls back, as harvesters does."""

    def __init__(self, buffers: list[Any]) -> None:
        self.buffers = buffers
        self.add: Callable[[], None] = lambda: None

    def try_fetch(self, timeout: float, is_raw: bool) -> Any:
        assert timeout > 0
        assert is_raw
        if not self.buffers:
            time.sleep(min(timeout, 0.01))
            return None
        buffer = self.buffers.pop(0)
        if buffer == "incomplete":
            self.add()
            return None
        return buffer


class FakeBuffer(SimpleNamespace):
    def __init__(self, frame_id: int, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "frame_id": frame_id,
            "payload_type": 1,
            "pixel_format": 0x01080001,
            "width": 8,
            "height": 4,
            "padding_x": 0,
            "image_offset": 0,
            "delivered_image_height": 4,
            "timestamp_ns": 1000 * frame_id,
            "raw_buffer": bytes([frame_id]) * 32,
        }
        super().__init__(**(fields | changes))
        self.queued = 0
        self.parent = self

    def queue_buffer(self, buffer: Any) -> None:
        self.queued += 1
        self.raw_buffer = b"\0" * 32


def fake_camera(buffers: list[Any], nodes: Any = None, **settings: Any) -> GenicamFrames:
    """A GenicamFrames between opened and closed, over buffers instead of a device."""
    camera = GenicamFrames(source(**settings), (4, 8, 1))
    acquirer = FakeAcquirer(buffers)
    acquirer.add = camera._add_incomplete
    camera._device = SimpleNamespace(acquirer=acquirer, nodes=nodes, is_gone=lambda: False)  # type: ignore[assignment]
    camera._begin()
    return camera


def test_an_incomplete_frame_is_one_header_in_its_place() -> None:
    camera = fake_camera([FakeBuffer(1), "incomplete", FakeBuffer(3), FakeBuffer(5)])
    headers = [header for header, _ in fetch(camera, 5)]
    assert [(header.frame_id, header.status.name) for header in headers] == [
        (1, "OK"),
        (2, "INCOMPLETE"),
        (3, "OK"),
        (4, "LOST"),
        (5, "OK"),
    ]


def test_a_frame_that_is_delivered_twice_is_one_trigger() -> None:
    camera = fake_camera([FakeBuffer(1), FakeBuffer(2), FakeBuffer(2), FakeBuffer(3)])
    assert [header.frame_id for header, _ in fetch(camera, 3)] == [1, 2, 3]


def test_the_very_first_frame_may_be_delivered_twice() -> None:
    camera = fake_camera([FakeBuffer(1), FakeBuffer(1), FakeBuffer(2)])
    assert [header.frame_id for header, _ in fetch(camera, 2)] == [1, 2]


def test_equal_frames_of_a_producer_without_ids_and_times_are_triggers_all_the_same() -> None:
    buffers = [FakeBuffer(0, timestamp_ns=0) for _ in range(3)]  # in the dark
    assert len(fetch(fake_camera(buffers), 3)) == 3


def test_frames_of_a_camera_whose_ids_are_stuck_are_triggers_all_the_same() -> None:
    buffers = [FakeBuffer(1), *(FakeBuffer(2, raw_buffer=bytes([grey]) * 32) for grey in (7, 8, 9))]
    assert [header.frame_id for header, _ in fetch(fake_camera(buffers), 4)] == [1, 2, 2, 2]
    buffers = [FakeBuffer(1), *(FakeBuffer(2, timestamp_ns=ns) for ns in (5, 6, 7))]
    assert [header.frame_id for header, _ in fetch(fake_camera(buffers), 4)] == [1, 2, 2, 2]


def test_frames_that_came_before_the_camera_was_lost_are_handed_out_first() -> None:
    buffer = FakeBuffer(4)
    buffer.parent = SimpleNamespace(queue_buffer=Raising(gentl.InvalidHandleException("gone")))
    camera = fake_camera([FakeBuffer(1), buffer])
    assert [header.frame_id for header, _ in fetch(camera, 4)] == [1, 2, 3, 4]
    with pytest.raises(SourceError, match="camera lost: gone"):
        camera.next(0.1)


class Raising:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *_: object) -> None:
        raise self._error


def test_a_wall_clock_that_is_set_back_does_not_prolong_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source(viky(silent_s=60), None) as camera:
        fetch(camera, 2)
        camera._device.nodes.AcquisitionStop.execute()
        while camera.next(0.2) is not None:
            pass
        began_s, real = time.monotonic(), time.time
        # Back by an hour in the middle of the wait, and forward again before the test would hang.
        monkeypatch.setattr(time, "time", lambda: real() - 3600 * (0.1 < time.monotonic() - began_s < 2.0))
        assert camera.next(0.2) is None
        assert time.monotonic() - began_s < 1.0


def test_pixels_are_copied_before_the_buffer_is_queued() -> None:
    buffer = FakeBuffer(7)
    _, pixels = fetch(fake_camera([buffer]), 1)[0]
    assert buffer.queued == 1
    assert pixels is not None
    assert (pixels == 7).all()


def test_a_frame_with_lines_missing_is_incomplete() -> None:
    header, pixels = fetch(fake_camera([FakeBuffer(1, delivered_image_height=2)]), 1)[0]
    assert header.status is FrameStatus.INCOMPLETE
    assert pixels is None


def test_an_unknown_pixel_format_is_a_header_and_no_crash() -> None:
    header, _ = fetch(fake_camera([FakeBuffer(1, pixel_format=0x011000B8)]), 1)[0]
    assert header.status is FrameStatus.WRONG_SHAPE


def test_chunk_data_gives_trigger_and_encoder_where_the_camera_sends_them() -> None:
    nodes = SimpleNamespace(ChunkEncoderValue=SimpleNamespace(value=4711))
    header, _ = fetch(fake_camera([FakeBuffer(1)], nodes, chunks=True), 1)[0]
    assert (header.encoder, header.trigger_id) == (4711, -1)
    assert header == FrameHeader(
        FrameStatus.OK, 1, encoder=4711, exposed_ns=1000, fetched_ns=header.fetched_ns
    )


class Counter:
    """A node that reads another value with each frame."""

    def __init__(self, *values: int) -> None:
        self._values = iter(values)

    @property
    def value(self) -> int:
        return next(self._values)


@pytest.mark.parametrize(
    ("counted", "seen"),
    [
        ("Line1", [(7, "OK"), (8, "LOST"), (9, "LOST"), (10, "OK"), (11, "INCOMPLETE"), (12, "OK")]),
        ("Line2", [(7, "OK"), (10, "OK"), (-1, "INCOMPLETE"), (12, "OK")]),  # an encoder, say
    ],
)
def test_a_trigger_that_the_camera_counted_but_gave_no_frame_for_is_lost(
    counted: str, seen: list[tuple[int, str]]
) -> None:
    nodes = SimpleNamespace(ChunkCounterValue=Counter(7, 10, 12))
    buffers = [FakeBuffer(1), FakeBuffer(2), "incomplete", FakeBuffer(4)]
    features = {"CounterEventSource": counted}
    camera = fake_camera(buffers, nodes, chunks=True, trigger=Trigger(), features=features)
    headers = [header for header, _ in fetch(camera, len(seen))]
    assert [(header.trigger_id, header.status.name) for header in headers] == seen


def test_a_silent_free_running_camera_is_lost() -> None:
    camera = fake_camera([FakeBuffer(1)], silent_s=0.1)
    assert not camera.waits_for_trigger
    fetch(camera, 1)
    with pytest.raises(SourceError, match="camera lost: no frame"):
        fetch(camera, 1)


def test_an_armed_camera_may_stay_silent() -> None:
    camera = fake_camera([], trigger=Trigger(), silent_s=0.05)
    assert camera.waits_for_trigger
    deadline_s = time.monotonic() + 0.2
    while time.monotonic() < deadline_s:
        assert camera.next(0.02) is None


def test_a_device_that_is_gone_is_lost_even_while_armed() -> None:
    camera = fake_camera([], trigger=Trigger())
    camera._device.is_gone = lambda: True  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="no longer there"):
        fetch(camera, 1)


def test_software_triggers_come_at_their_rate() -> None:
    fired_s: list[float] = []
    command = SimpleNamespace(execute=lambda: fired_s.append(time.monotonic()))
    trigger = Trigger(source="Software", software_rate_hz=50)
    camera = fake_camera([], SimpleNamespace(TriggerSoftware=command), trigger=trigger)
    assert not camera.waits_for_trigger
    deadline_s = time.monotonic() + 0.5
    while time.monotonic() < deadline_s:
        camera.next(0.2)
    assert 20 <= len(fired_s) <= 27
