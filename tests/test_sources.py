"""Replays and the simulated line: every file and every part is one trigger, nothing is guessed."""

from __future__ import annotations

import time
import zlib
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_camera import pixels_of, run_python, write_image

from inspectord.errors import FrameError, SourceError
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.settings import FolderSource, LineSource, VideoSource
from inspectord.sources import FrameSource, Item, open_source
from inspectord.sources.files import ImageKindError, list_images, read_image
from inspectord.sources.line import render_part, truth

GREY, COLOUR = (40, 50, 1), (40, 50, 3)


@pytest.fixture
def photo() -> np.ndarray:
    """Noise, which no encoder makes small, of shape (40, 50, 3)."""
    return np.random.default_rng(1).integers(0, 256, COLOUR, np.uint8)


def drain(source: FrameSource, timeout_s: float = 5.0) -> list[Item]:
    items, start_s = [], time.monotonic()
    while not source.ended and time.monotonic() - start_s < timeout_s:
        item = source.next(0.2)
        if item is not None:
            items.append((item[0], None if item[1] is None else item[1].copy()))
    return items


def replay(folder: Path, shape: tuple[int, int, int] | None = GREY, **settings: object) -> list[Item]:
    with open_source(FolderSource(path=folder, **settings), shape) as source:  # type: ignore[arg-type]
        return drain(source)


def statuses(items: list[Item]) -> list[FrameStatus]:
    return [header.status for header, _ in items]


# --- image files ---


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_lossless_file_reads_back_exactly(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    assert (read_image(write_image(tmp_path / f"colour{suffix}", photo)) == photo).all()
    assert (read_image(write_image(tmp_path / f"grey{suffix}", photo[:, :, :1])) == photo[:, :, :1]).all()


def test_a_grey_jpeg_has_one_channel(tmp_path: Path, photo: np.ndarray) -> None:
    assert read_image(write_image(tmp_path / "a.jpg", photo[:, :, 0])).shape == GREY


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_never_read_as_an_image(
    tmp_path: Path, photo: np.ndarray, suffix: str, kept: float
) -> None:
    path = write_image(tmp_path / f"a{suffix}", photo)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(FrameError, match="copy it again"):
        read_image(path)


def test_a_jpeg_cut_behind_its_thumbnail_is_seen(tmp_path: Path, photo: np.ndarray) -> None:
    small = cv2.imencode(".jpg", photo[:8, :8])[1].tobytes()
    data = write_image(tmp_path / "a.jpg", photo).read_bytes()
    exif = b"\xff\xe1" + (len(small) + 8).to_bytes(2, "big") + b"Exif\0\0" + small
    path = tmp_path / "thumb.jpg"
    path.write_bytes(data[:2] + exif + data[2:])
    assert read_image(path).shape == COLOUR
    path.write_bytes((data[:2] + exif + data[2:])[:-200])
    with pytest.raises(FrameError, match="cut short"):
        read_image(path)


def test_sixteen_bits_are_refused_with_a_next_step(tmp_path: Path) -> None:
    path = write_image(tmp_path / "deep.png", np.zeros((4, 4), np.uint16))
    with pytest.raises(ImageKindError, match=r"deep\.png.*convert to 8 bit first"):
        read_image(path)


def test_only_a_fully_opaque_alpha_channel_is_dropped(tmp_path: Path, photo: np.ndarray) -> None:
    opaque = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    assert (read_image(write_image(tmp_path / "opaque.png", opaque)) == photo).all()
    opaque[0, 0, 3] = 254
    with pytest.raises(ImageKindError, match="transparent"):
        read_image(write_image(tmp_path / "clear.png", opaque))


def test_three_equal_channels_stay_three(tmp_path: Path) -> None:
    assert read_image(write_image(tmp_path / "a.png", pixels_of(9, COLOUR))).shape == COLOUR


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")


def test_images_are_listed_below_the_folder_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "b/1.PNG", "a/3.jpg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == [
        "2.png",
        "10.png",
        "a/3.jpg",
        "b/1.PNG",
    ]


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder"):
        list_images(tmp_path / "missing")
    with pytest.raises(SourceError, match="no images"):
        list_images(tmp_path)


# --- folder ---


def test_a_folder_gives_each_file_once_with_its_path_as_part_id(tmp_path: Path) -> None:
    for n in (1, 2, 10):
        write_image(tmp_path / "good" / f"{n}.png", pixels_of(n, GREY))
    items = replay(tmp_path)
    assert [header.part_id for header, _ in items] == ["good/1.png", "good/2.png", "good/10.png"]
    assert [header.frame_id for header, _ in items] == [1, 2, 3]
    assert [int(pixels[0, 0, 0]) for _, pixels in items if pixels is not None] == [1, 2, 10]


def test_a_bad_file_is_one_header_and_the_replay_goes_on(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", pixels_of(1, GREY))
    (tmp_path / "2.png").write_bytes(b"nothing")
    write_image(tmp_path / "3.png", pixels_of(3, (4, 4, 1)))
    write_image(tmp_path / "4.png", pixels_of(4, COLOUR))
    write_image(tmp_path / "5.png", np.zeros(GREY, np.uint16))
    write_image(tmp_path / "6.png", pixels_of(6, GREY))
    items = replay(tmp_path)
    wrong = FrameStatus.WRONG_SHAPE
    assert statuses(items) == [FrameStatus.OK, FrameStatus.UNREADABLE, wrong, wrong, wrong, FrameStatus.OK]
    assert [header.part_id for header, _ in items] == [f"{n}.png" for n in range(1, 7)]
    assert [pixels is None for _, pixels in items] == [False, True, True, True, True, False]


def test_letterbox_fits_other_sizes_but_never_other_channels(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", pixels_of(7, (80, 50, 1)))
    write_image(tmp_path / "2.png", pixels_of(8, (80, 50, 3)))
    (_, pixels), (header, _) = replay(tmp_path, letterbox=True)
    assert pixels is not None
    assert pixels.shape == GREY
    assert (pixels == 7).all()
    assert header.status is FrameStatus.WRONG_SHAPE


def test_without_a_recipe_the_first_image_gives_the_shape(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", pixels_of(1, COLOUR))
    write_image(tmp_path / "2.png", pixels_of(2, GREY))
    assert statuses(replay(tmp_path, None)) == [FrameStatus.OK, FrameStatus.WRONG_SHAPE]


def test_a_loop_starts_again_with_new_frame_ids(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", pixels_of(1, GREY))
    with open_source(FolderSource(path=tmp_path, loop=True), GREY) as source:
        headers = [item[0] for _ in range(5) if (item := source.next(0.1))]
        assert not source.ended
    assert [header.frame_id for header in headers] == [1, 2, 3, 4, 5]


def test_a_rate_paces_the_replay_and_takes_its_back_pressure(tmp_path: Path) -> None:
    for n in range(6):
        write_image(tmp_path / f"{n}.png", pixels_of(n, GREY))
    items = replay(tmp_path, rate_hz=50.0)
    times_ns = [header.fetched_ns for header, _ in items]
    assert (times_ns[-1] - times_ns[0]) / 1e9 == pytest.approx(0.1, abs=0.04)
    assert open_source(FolderSource(path=tmp_path), GREY).backpressure
    assert not open_source(FolderSource(path=tmp_path, rate_hz=5), GREY).backpressure


# --- video ---


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 50.0, (64, 48))
    for n in range(8):
        writer.write(np.full((48, 64, 3), 20 * n, np.uint8))
    writer.release()
    return path


def test_a_video_gives_each_frame_at_its_own_rate(clip: Path) -> None:
    with open_source(VideoSource(path=clip), (48, 64, 3)) as source:
        items = drain(source)
    assert [header.frame_id for header, _ in items] == list(range(1, 9))
    assert [round(float(pixels.mean()) / 20) for _, pixels in items if pixels is not None] == list(range(8))
    spacing_s = (items[-1][0].fetched_ns - items[0][0].fetched_ns) / 7e9
    assert spacing_s == pytest.approx(0.02, abs=0.008)


@pytest.mark.parametrize("kind", ["folder", "video", "line"])
def test_a_replay_that_was_cut_off_goes_on_behind_what_is_done(tmp_path: Path, clip: Path, kind: str) -> None:
    for n in range(1, 9):
        write_image(tmp_path / f"{n}.png", pixels_of(n, COLOUR))
    sources: dict[str, FolderSource | VideoSource | LineSource] = {
        "folder": FolderSource(path=tmp_path, rate_hz=200),
        "video": VideoSource(path=clip, rate_hz=200),
        "line": LineSource(rate_hz=200, parts=8, width=64, height=64),
    }
    with open_source(sources[kind], None) as source:
        whole = drain(source)
    start_s = time.monotonic()
    with open_source(sources[kind], None, done=5) as source:
        rest = drain(source)
    assert time.monotonic() - start_s < 0.5
    assert [header.trigger_id for header, _ in rest] == [6, 7, 8]
    for (header, pixels), (expected, expected_pixels) in zip(rest, whole[5:], strict=True):
        assert (header.frame_id, header.part_id) == (expected.frame_id, expected.part_id)
        assert np.array_equal(np.asarray(pixels), np.asarray(expected_pixels))


def test_a_looped_video_goes_on_behind_what_is_done(clip: Path) -> None:
    with open_source(VideoSource(path=clip, rate_hz=1000, loop=True), None, done=8 * 1000 + 2) as source:
        item = source.next(1.0)
    assert item is not None
    assert item[1] is not None
    assert item[0].trigger_id == 8003
    assert round(float(item[1].mean()) / 20) == 2


def test_a_grey_video_serves_a_grey_recipe(clip: Path) -> None:
    with open_source(VideoSource(path=clip, rate_hz=1000), (48, 64, 1)) as source:
        assert {pixels.shape for _, pixels in drain(source) if pixels is not None} == {(48, 64, 1)}


def test_a_video_can_run_for_ever(clip: Path) -> None:
    with open_source(VideoSource(path=clip, rate_hz=2000, loop=True), None) as source:
        found = [source.next(0.5) for _ in range(20)]
    assert [item[0].frame_id for item in found if item] == list(range(1, 21))


def test_a_video_that_is_missing_or_no_video_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.avi", tmp_path / "text.avi"):
        if path.stem == "text":
            path.write_text("no video")
        with pytest.raises(SourceError, match=path.name), open_source(VideoSource(path=path), None):
            pass


# --- simulated line ---


def test_a_part_is_the_same_in_every_order_and_every_process() -> None:
    code = (
        "import zlib; from inspectord.sources.line import render_part;"
        "print([zlib.crc32(render_part(3, n, 96, 96, 0.5).pixels.tobytes()) for n in (9, 1, 5)])"
    )
    here = [zlib.crc32(render_part(3, n, 96, 96, 0.5).pixels.tobytes()) for n in (5, 1, 9)]
    assert run_python(code).stdout.strip() == str(here[::-1])


def test_truth_is_known_without_rendering() -> None:
    for number in range(60):
        assert render_part(2, number, 64, 64, 0.5).defect == truth(2, number, 0.5)


def test_defects_are_as_frequent_as_asked_and_of_every_kind() -> None:
    truths = [truth(0, number, 0.3) for number in range(4000)]
    share = sum(defect != "none" for defect in truths) / len(truths)
    assert share == pytest.approx(0.3, abs=0.03)
    assert set(truths) == {"none", "scratch", "stain", "missing_hole", "chip", "fibre"}
    assert {truth(0, number, 0.0) for number in range(500)} == {"none"}


def test_a_good_part_has_an_empty_mask_and_a_bad_one_shows_its_defect_there() -> None:
    for number in range(40):
        good, bad = (render_part(1, number, 256, 256, rate) for rate in (0.0, 1.0))
        assert not good.mask.any()
        assert bad.mask.any(), bad.defect
        change = np.abs(good.pixels.astype(int) - bad.pixels)[:, :, 0]
        assert change[bad.mask].mean() > 3 * change[~bad.mask].mean(), (number, bad.defect)


def test_good_parts_differ_only_by_pose_and_noise() -> None:
    first, second = (render_part(0, number, 256, 256, 0.0).pixels.astype(int) for number in (1, 2))
    difference = np.abs(first - second)
    assert 0 < difference.mean() < 12


def test_a_part_renders_in_less_than_eight_milliseconds() -> None:
    render_part(0, 0, 256, 256, 0.5)
    times_s = []
    for number in range(50):
        start_s = time.perf_counter()
        render_part(0, number, 256, 256, 0.5)
        times_s.append(time.perf_counter() - start_s)
    assert float(np.median(times_s)) < 0.008


def test_other_frame_shapes_render_too() -> None:
    for width, height in ((64, 64), (640, 480), (100, 301)):
        assert render_part(0, 3, width, height, 1.0).pixels.shape == (height, width, 1)


def test_the_line_counts_triggers_encoder_and_parts_at_exact_times() -> None:
    with open_source(LineSource(rate_hz=200, parts=20, width=64, height=64), (64, 64, 1)) as source:
        headers = [header for header, _ in drain(source)]
    assert [header.trigger_id for header in headers] == list(range(1, 21))
    assert [header.encoder for header in headers] == [1000 * n for n in range(1, 21)]
    assert headers[9].part_id == "000010"
    assert all(header.simulated for header in headers)
    steps = {b.fetched_ns - a.fetched_ns for a, b in pairwise(headers)}
    assert steps == {5_000_000}


def test_a_line_that_falls_behind_skips_no_trigger() -> None:
    with open_source(LineSource(rate_hz=10_000, parts=60, width=64, height=64), None) as source:
        time.sleep(0.1)
        late_ns = time.monotonic_ns()
        headers = [header for header, _ in drain(source)]
    assert [header.trigger_id for header in headers] == list(range(1, 61))
    assert headers[-1].fetched_ns < late_ns
    assert {b.fetched_ns - a.fetched_ns for a, b in pairwise(headers)} == {100_000}


def test_a_line_of_another_size_than_the_recipe_says_so() -> None:
    with open_source(LineSource(rate_hz=1000, parts=2, width=64, height=64), (32, 32, 1)) as source:
        assert statuses(drain(source)) == [FrameStatus.WRONG_SHAPE] * 2


def test_a_header_is_frozen() -> None:
    with pytest.raises(AttributeError):
        FrameHeader(FrameStatus.OK, 1).frame_id = 2  # type: ignore[misc]
