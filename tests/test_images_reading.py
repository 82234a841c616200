"""Which frames may teach: bad ones are named, none is converted or dropped in silence, no defect gets in."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from calibrate.images import collect_good_frames, frame_digest
from calibrate.progress import Silent
from inspectord.errors import FitError, FrameError, SourceError
from inspectord.sources.parts import render_part

COUNT = 12


def write_parts(folder, count=COUNT, first=0, width=64, height=64):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        cv2.imwrite(str(folder / f"{number:03d}.png"), render_part(1, number, width, height, 0.0).pixels)
    return folder


def collect(*folders, letterbox=None, skip_bad=False, progress=None):
    return collect_good_frames(folders, letterbox, skip_bad, progress or Silent())


@pytest.fixture
def good(tmp_path):
    return write_parts(tmp_path / "good")


def cut_png(folder):
    whole = (folder / "000.png").read_bytes()
    (folder / "bad.png").write_bytes(whole[: len(whole) // 2])


def cut_jpeg(folder):
    _, data = cv2.imencode(".jpg", cv2.imread(str(folder / "000.png")))
    (folder / "bad.jpg").write_bytes(data.tobytes()[:-40])


def garbage(folder):
    (folder / "bad.png").write_bytes(b"this is no image" * 20)


def empty(folder):
    (folder / "bad.png").touch()


def sixteen_bit(folder):
    cv2.imwrite(str(folder / "bad.png"), np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))


def transparent(folder):
    cv2.imwrite(str(folder / "bad.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 4), np.uint8))


def constant(folder):
    cv2.imwrite(str(folder / "bad.png"), np.full((64, 64), 127, np.uint8))


BAD = [
    (cut_png, "cut short"),
    (cut_jpeg, "cut short"),
    (garbage, "can be decoded"),
    (empty, "can be decoded"),
    (sixteen_bit, "16 bits"),
    (transparent, "transparent"),
    (constant, "blank: every pixel is 127"),
]


@pytest.mark.parametrize(("spoil", "why"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_image_is_named_and_stops_the_fit(good, spoil, why):
    spoil(good)
    with pytest.raises(FrameError, match=rf"1 bad image: .*bad\..*{why}.*--skip-bad"):
        collect(good)


@pytest.mark.parametrize(("spoil", "why"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_skip_bad_leaves_it_out_counts_it_and_names_it(good, spoil, why):
    spoil(good)
    progress = Silent()
    frames = collect(good, skip_bad=True, progress=progress)
    assert len(frames) == COUNT
    assert [path.stem for path in frames.skipped] == ["bad"]
    assert any("left out by --skip-bad: 1 bad image" in note and why in note for note in progress.notes)


def test_many_bad_images_are_counted_and_the_first_few_named(good):
    for number in range(9):
        (good / f"x{number}.png").write_bytes(b"no")
    with pytest.raises(FrameError, match=r"9 bad images: .*x4\.png.*; and 4 more; remove"):
        collect(good)


def test_where_all_are_bad_the_reasons_are_told_before_too_few_is(tmp_path):
    folder = tmp_path / "blank"
    folder.mkdir()
    for number in range(COUNT):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((64, 64), number, np.uint8))
    progress = Silent()
    with pytest.raises(FitError, match="0 different good images"):
        collect(folder, skip_bad=True, progress=progress)
    assert "12 bad images" in progress.notes[-1]


def test_mixed_sizes_are_refused_even_by_skip_bad_and_letterbox_takes_them(good):
    write_parts(good, count=2, first=50, width=80, height=64)
    with pytest.raises(FrameError, match=r"12 of 64x64x1 .*, 2 of 80x64x1 .*--letterbox 80x64"):
        collect(good, skip_bad=True)
    frames = collect(good, letterbox=(80, 64))
    assert frames.shape == (64, 80, 1)
    assert {frames.read(index).shape for index in range(len(frames))} == {(64, 80, 1)}


def test_grey_and_colour_are_never_mixed(good):
    cv2.imwrite(str(good / "colour.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with pytest.raises(FrameError, match="grey and colour images are mixed"):
        collect(good, letterbox=(64, 64))


def test_too_few_images_say_how_many_are_needed(tmp_path):
    with pytest.raises(FitError, match=r"1 different good image in .*at least 10.*calibrate capture"):
        collect(write_parts(tmp_path / "one", count=1))


def test_empty_and_missing_folders_say_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no images in"):
        collect(tmp_path / "empty")
    with pytest.raises(SourceError, match="no folder"):
        collect(tmp_path / "missing")


def test_copies_count_once_whatever_their_name_or_format(good):
    image = cv2.imread(str(good / "003.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(good / "copy.bmp"), image)
    progress = Silent()
    frames = collect(good, progress=progress)
    assert (len(frames), frames.duplicates) == (COUNT, 1)
    assert "exact copies of other images: 1" in progress.notes[-1]


def test_shape_is_part_of_a_frames_digest():
    assert frame_digest(np.zeros((4, 6, 1), np.uint8)) != frame_digest(np.zeros((6, 4, 1), np.uint8))


def test_order_follows_the_pictures_not_their_names(good, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(good.iterdir(), reverse=True)):
        (renamed / f"{number}.png").write_bytes(path.read_bytes())
    assert collect(good).digest == collect(renamed).digest


def labelled(root):
    """A data set as they are published: good parts to learn from, defects to test with."""
    write_parts(root / "train" / "good")
    write_parts(root / "test" / "good", count=2, first=100)
    write_parts(root / "test" / "scratch", count=2, first=200)
    write_parts(root / "ground_truth" / "scratch", count=2, first=300)
    return root


def test_the_root_of_a_data_set_teaches_its_good_training_images_only(tmp_path):
    frames = collect(labelled(tmp_path / "flange"))
    assert len(frames) == COUNT
    assert {frame.path.parent for frame in frames.frames} == {tmp_path / "flange" / "train" / "good"}


@pytest.mark.parametrize("chosen", ["flange/test", "."])
def test_a_folder_that_holds_defects_anywhere_below_is_refused(tmp_path, chosen):
    labelled(tmp_path / "flange")
    with pytest.raises(FitError, match=r"holds good next to scratch; .* give .*test/good"):
        collect(tmp_path / chosen)
