"""Reject images: whole files, inside the quota, never in the way of a verdict."""

import errno
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers_daemon import make_message
from helpers_recipe import bad_frame, write_recipe

from inspectord import images as images_module
from inspectord.errors import StateError
from inspectord.health import Health
from inspectord.image_files import ImageFiles
from inspectord.images import Images, RejectedFrame, overlay
from inspectord.messages import Verdict
from inspectord.recipe import load_recipe
from inspectord.sources.files import read_image


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    grey, colour = (write_recipe(folder, name, shape=(64, 96, n)) for name, n in (("grey", 1), ("colour", 3)))
    return SimpleNamespace(grey=load_recipe(grey).spec, colour=load_recipe(colour).spec)


def rejected(spec, seq=1, **changes):
    anomaly_map = np.zeros((8, 12), np.float32)
    anomaly_map[3, 2] = 0.7
    message = make_message(seq, verdict=Verdict.REJECT, score=0.7, boxes=((16, 24, 8, 8),), **changes)
    return RejectedFrame(message, bad_frame(96, 64, spec.frame.channels), anomaly_map, spec)


def until(done, timeout_s=10.0):
    end_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def saved(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_reject_is_saved_as_frame_overlay_and_verdict(tmp_path, specs):
    images = Images(tmp_path, 100, Health())
    images.put(rejected(specs.grey, 7))
    images.close()
    stem = "0" * 32 + "_00000007"
    assert [path.name for path in saved(tmp_path)] == [
        f"{stem}_frame.png",
        f"{stem}_overlay.jpg",
        f"{stem}_verdict.json",
    ]
    folder = tmp_path / "cam1" / "2026-01-02"
    assert np.array_equal(read_image(folder / f"{stem}_frame.png"), bad_frame(96, 64))
    assert json.loads((folder / f"{stem}_verdict.json").read_text())["seq"] == 7


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_the_overlay_marks_the_defect_and_leaves_the_rest_as_it_is(specs, kind):
    item = rejected(getattr(specs, kind))
    shown = overlay(item)
    plain = np.asarray(cv2.cvtColor(item.pixels, cv2.COLOR_GRAY2BGR) if kind == "grey" else item.pixels)
    assert shown.shape[0] > 64
    assert np.array_equal(shown[40:60, 60:90], plain[40:60, 60:90])
    assert tuple(shown[24, 16]) == (40, 40, 255)
    assert not np.array_equal(shown[26:30, 21:23], plain[26:30, 21:23])


def test_a_map_that_is_not_finite_is_still_shown(specs):
    item = rejected(specs.grey)
    item.anomaly_map[0, 0] = np.nan
    item.anomaly_map[0, 1] = np.inf
    assert overlay(item).dtype == np.uint8


def test_the_quota_deletes_the_oldest_and_keeps_the_newest(tmp_path, specs):
    images = Images(tmp_path, 1, Health())
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 1)).astype(np.uint8)
    for seq in range(1, 201):
        item = rejected(specs.grey, seq, decided_at=f"2026-01-{1 + seq // 100:02d}T00:00:00.000+00:00")
        images._queue.put(RejectedFrame(item.message, noise, item.anomaly_map, item.spec))
    images.close(30)
    sizes = sum(path.stat().st_size for path in saved(tmp_path))
    assert sizes <= 1 << 20
    assert saved(tmp_path)[-1].name.endswith("_00000200_verdict.json")
    assert not (tmp_path / "cam1" / "2026-01-01").exists()


def test_a_full_queue_drops_the_image_and_counts_it(tmp_path, specs):
    images = Images(tmp_path, 100, Health())
    for seq in range(1, 201):
        images.put(rejected(specs.grey, seq))
    images.close()
    assert images.dropped > 0
    assert images.dropped + images.written == 200


def test_what_a_crash_left_unfinished_is_removed(tmp_path, specs):
    (tmp_path / "cam1").mkdir()
    (tmp_path / "cam1" / "x_1_frame.png.tmp").write_bytes(b"half")
    Images(tmp_path, 100, Health()).close()
    assert saved(tmp_path) == []


def test_a_disk_that_fails_costs_the_image_and_is_counted(tmp_path, specs):
    images = Images(tmp_path, 100, Health())
    (tmp_path / "cam1").write_text("a file where the folder should be")
    images.put(rejected(specs.grey))
    images.close()
    assert images.dropped == 1
    assert "cam1" in images.failing


def test_saving_goes_on_by_itself_when_the_disk_is_well_again(tmp_path, specs):
    """Without waiting for the next reject, which may be days away."""
    folder = tmp_path / "rejects"
    images = Images(folder, 100, Health())
    folder.rmdir()
    folder.write_text("a file where the folder should be")
    images.put(rejected(specs.grey))
    until(lambda: images.failing is not None and images.dropped == 1)  # the disk can be found bad before
    folder.unlink()
    until(lambda: images.failing is None)
    images.put(rejected(specs.grey, 2))
    images.close()
    assert (images.written, images.dropped) == (1, 1)


def test_a_disk_that_fails_in_the_middle_keeps_no_part_of_a_reject(tmp_path, specs):
    """Half-written files are in no list: they would fill the disk beside the quota."""
    images = Images(tmp_path, 100, Health())
    day = tmp_path / "cam1" / "2026-01-02"
    (day / ("0" * 32 + "_00000001_verdict.json.tmp")).mkdir(parents=True)  # the third file can't be written
    images.put(rejected(specs.grey))
    images.close()
    assert images.dropped == 1
    assert saved(tmp_path) == []


def test_what_could_not_be_tidied_up_on_a_bad_disk_is_tidied_up_later(tmp_path, monkeypatch):
    files = ImageFiles(tmp_path, 1000)
    files.look()
    unlink, failing = Path.unlink, True

    def bad(path, *arguments, **more):
        if failing:
            raise OSError(errno.EROFS, "Read-only file system")
        return unlink(path, *arguments, **more)

    monkeypatch.setattr(Path, "unlink", bad)
    (tmp_path / "cam1" / "a_2.json.tmp").mkdir(parents=True)
    with pytest.raises(OSError):
        files.add([("cam1/a_1.png", b"x"), ("cam1/a_2.json", b"x")])
    assert [path.name for path in saved(tmp_path)] == ["a_1.png"]
    failing = False
    files.probe()
    assert saved(tmp_path) == []


def test_what_can_not_be_deleted_still_counts_against_the_quota(tmp_path):
    files = ImageFiles(tmp_path, 100)
    files.add([("cam1/a_1.png", b"x" * 60)])
    kept = tmp_path / "cam1" / "a_1.png"
    kept.unlink()
    kept.mkdir()  # as on a read-only disk: unlink fails
    for _ in range(2):
        with pytest.raises(OSError):
            files.add([("cam1/b_2.png", b"x" * 60)])
    kept.rmdir()
    kept.write_bytes(b"x" * 60)
    files.add([("cam1/b_2.png", b"x" * 60)])
    assert [path.name for path in saved(tmp_path)] == ["b_2.png"]


def test_the_last_of_a_disk_is_left_to_the_journal(tmp_path, specs, monkeypatch):
    images = Images(tmp_path, 100, Health())
    monkeypatch.setattr("inspectord.image_files.SPARED_SHARE", 1)  # all of this disk
    monkeypatch.setattr("inspectord.image_files.SPARED_BYTES", 1 << 60)
    images.put(rejected(specs.grey))
    until(lambda: images.dropped == 1)
    assert "journal's" in images.failing
    monkeypatch.undo()
    until(lambda: images.failing is None)
    images.close()


def test_a_disk_that_stalls_is_told_and_is_no_stuck_thread(tmp_path, specs, monkeypatch):
    health, answer = Health(), threading.Event()
    monkeypatch.setattr("inspectord.images.STALLED_S", 0.1)
    monkeypatch.setattr("inspectord.health.PATIENCE_S", 0.1)
    images = Images(tmp_path, 100, health)
    monkeypatch.setattr("inspectord.image_files.write_atomically", lambda *_: answer.wait(10))
    images.put(rejected(specs.grey))
    until(lambda: "not answered" in str(images.failing))
    assert health.ages_s()["images"] > 0.1
    assert health.stuck() == []
    answer.set()
    until(lambda: images.failing is None)
    images.close()


def test_a_folder_that_can_not_be_written_names_the_next_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r'images\.save = "none"'):
        Images(tmp_path / "file" / "rejects", 100, Health())


def test_a_few_huge_rejects_take_no_more_memory_than_the_queue_may(tmp_path, specs, monkeypatch):
    monkeypatch.setattr(images_module, "QUEUE_BYTES", 15_000)
    images = Images(tmp_path, 100, Health())
    monkeypatch.setattr(images, "_save", lambda *_: time.sleep(0.2))
    for number in range(1, 9):
        images.put(rejected(specs.grey, number))  # 6.5 kB each, so one is in work and two wait
    assert 4 <= images.dropped <= 6
    images.close()
    assert images._queued_bytes == 0
