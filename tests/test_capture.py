"""calibrate capture: what was grabbed is kept exactly, counted truthfully, and never overwrites anything."""

from __future__ import annotations

import csv
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import cv2
import genicam
import numpy as np
import pytest

from calibrate.cli import main
from calibrate.images import collect_good_frames
from calibrate.progress import Silent
from inspectord.sources.files import read_image
from inspectord.sources.parts import render_part

ROOT = Path(__file__).parent.parent
VIKY = Path(os.path.dirname(genicam.__file__)) / "viky.cti"
LINE = ("--line", "--size", "96x80", "--seed", "3", "--rate", "200")


def capture(run, *arguments):
    return main(["capture", str(run), *map(str, arguments)])


def start(run, *arguments, **popen):
    command = [sys.executable, "-m", "calibrate", "capture", str(run), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def pictures(run):
    return sorted((run / "frames").glob("*.png"))


def toml_of(run):
    return tomllib.loads((run / "run.toml").read_text())


def rows_of(run):
    with (run / "frames.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_parts(folder, count, width=96, height=80):
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:03d}.png"), render_part(1, number, width, height, 0.0).pixels)
    return folder


def wait_for(pattern, run, count, process):
    until = time.monotonic() + 30
    while len(list(run.glob(pattern))) < count:
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_frames_of_the_line_are_kept_pixel_for_pixel_with_their_part_ids(tmp_path, capsys):
    run = tmp_path / "runs" / "monday"
    assert capture(run, *LINE, "--frames", 5, "--note", "early shift") == 0
    for number, path in enumerate(pictures(run), start=1):
        assert np.array_equal(read_image(path), render_part(3, number, 96, 80, 0.0).pixels)
    assert [(row["file"], row["part_id"]) for row in rows_of(run)] == [
        (f"frames/{number:06d}.png", f"{number:06d}") for number in range(1, 6)
    ]
    said = capsys.readouterr().out
    assert "5 grey frames of 96x80" in said
    assert f"`calibrate fit {run} --product NAME`" in said


def test_run_toml_says_source_time_shape_counts_versions_and_note(tmp_path):
    assert capture(tmp_path / "run", *LINE, "--frames", 2, "--note", "early shift") == 0
    table = toml_of(tmp_path / "run")
    assert table["source"]["kind"] == "line"
    assert table["source"]["defect_rate"] == 0
    assert table["began"].tzinfo is not None
    assert table["shape"] == {"width": 96, "height": 80, "channels": 1}
    assert (table["frames"]["kept"], table["frames"]["lost"], table["frames"]["incomplete"]) == (2, 0, 0)
    assert {"inspectord", "python", "numpy", "opencv-python-headless"} <= set(table["software"])
    assert table["note"] == "early shift"


def test_a_captured_run_teaches_all_its_frames(tmp_path):
    assert capture(tmp_path / "run", *LINE, "--frames", 12) == 0
    good = collect_good_frames([tmp_path / "run"], None, False, Silent())
    assert (len(good), good.shape) == (12, (80, 96, 1))


def test_an_existing_run_is_never_overwritten(tmp_path, capsys):
    run = tmp_path / "run"
    assert capture(run, *LINE, "--frames", 2) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert capture(run, *LINE, "--frames", 3) == 73
    assert "exists already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert capture(tmp_path / "file" / "run", *LINE) == 73
    said = capsys.readouterr().err
    assert said.startswith("calibrate: can't write")
    assert len(said.splitlines()) == 1


def test_unreadable_and_wrongly_sized_files_are_counted_and_named(tmp_path, capsys):
    folder = write_parts(tmp_path / "parts", 4)
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:200])
    cv2.imwrite(str(folder / "002.png"), np.zeros((50, 50), np.uint8))
    assert capture(tmp_path / "run", "--folder", folder) == 0
    said = capsys.readouterr()
    assert "1 wrong shape, 1 unreadable" in said.out
    assert "001.png is cut short" in said.err
    assert "298 fewer than asked for: the source has no more frames" in said.out
    table = toml_of(tmp_path / "run")["frames"]
    assert (table["kept"], table["unreadable"], table["wrong_shape"]) == (2, 1, 1)
    assert [row["status"] for row in rows_of(tmp_path / "run")] == ["ok", "unreadable", "wrong_shape", "ok"]
    assert [row["file"] for row in rows_of(tmp_path / "run")].count("") == 2


def test_a_source_without_one_usable_frame_is_an_error_and_leaves_no_folder(tmp_path, capsys):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    assert capture(tmp_path / "run", "--folder", folder) == 69
    assert "no usable frame (1 unreadable)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_video_is_read_to_its_end_without_waiting(tmp_path, capsys):
    path = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 1.0, (96, 80))
    for number in range(8):
        writer.write(np.repeat(render_part(1, number, 96, 80, 0.0).pixels, 3, axis=2))
    writer.release()
    began = time.monotonic()
    assert capture(tmp_path / "run", "--video", path) == 0
    assert time.monotonic() - began < 4  # 8 s at the file's own rate
    assert len(pictures(tmp_path / "run")) == 8
    assert "8 colour frames" in capsys.readouterr().out


def test_a_configured_camera_gives_good_parts_only(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        '[[cameras]]\nname = "cam1"\nrecipe = "flange"\n'
        'source = {kind = "line", seed = 5, rate_hz = 200, defect_rate = 1.0, width = 64, height = 64}\n'
    )
    assert capture(tmp_path / "run", "--config", config, "--frames", 3) == 0
    assert np.array_equal(read_image(pictures(tmp_path / "run")[2]), render_part(5, 3, 64, 64, 0.0).pixels)


def test_of_several_cameras_one_must_be_named(tmp_path, capsys):
    parts = write_parts(tmp_path / "parts", 3)
    config = tmp_path / "c.toml"
    config.write_text(
        "".join(
            f'[[cameras]]\nname = "{name}"\nrecipe = "flange"\n'
            'source = {kind = "folder", path = "parts", loop = true}\n'
            for name in ("left", "right")
        )
    )
    assert capture(tmp_path / "run", "--config", config) == 78
    assert "--camera with one of: left, right" in capsys.readouterr().err
    assert capture(tmp_path / "run", "--config", config, "--camera", "middle") == 78
    assert capture(tmp_path / "run", "--config", config, "--camera", "left") == 0
    assert len(pictures(tmp_path / "run")) == len(list(parts.iterdir()))  # a loop would teach copies


def test_no_frame_for_too_long_is_an_error_that_keeps_what_came(tmp_path, capsys):
    slow = ("--line", "--size", "64x64", "--rate", "0.02", "--wait", "0.5")
    assert capture(tmp_path / "run", *slow) == 69
    said = capsys.readouterr().err
    assert "no usable frame for 0.5 s" in said
    assert "--wait" in said
    assert "/run: 1" in said
    assert toml_of(tmp_path / "run")["frames"]["kept"] == 1


def test_a_full_disk_is_one_line_and_leaves_no_half_frame(tmp_path):
    """A limit on the size of files stands for the disk: the first frame does not fit."""
    limit = (1000, 1000)
    process = start(
        tmp_path / "run", *LINE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 73
    assert "can't write" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_ctrl_c_keeps_what_was_grabbed(tmp_path):
    run = tmp_path / "run"
    process = start(run, "--line", "--size", "96x80", "--rate", "50", "--frames", 10_000)
    wait_for("frames/*.png", run, 3, process)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "fewer than asked for: interrupted" in out
    assert "Traceback" not in said
    kept = toml_of(run)["frames"]["kept"]
    assert kept == len(pictures(run)) == len(rows_of(run)) >= 3


class Armed:
    """A triggered camera at a standing line, and an operator who gives up."""

    waits_for_trigger = True
    ended = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def next(self, timeout_s):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("calibrate.capture.open_source", lambda source, shape: Armed())
    before = signal.getsignal(signal.SIGINT)
    assert capture(tmp_path / "run", *LINE) == 130
    said = capsys.readouterr()
    assert "nothing was written" in said.out
    assert "armed" in said.err
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_genicam_camera_is_captured_with_its_features_set(tmp_path):
    chosen = ("--cti", VIKY, "--serial", 1, "--feature", "PixelFormat=Mono8")
    assert capture(tmp_path / "run", *chosen, "--frames", 4) == 0
    table = toml_of(tmp_path / "run")
    assert table["frames"]["kept"] == 4
    assert table["shape"]["channels"] == 1
    assert table["source"]["features"] == {"PixelFormat": "Mono8"}


def test_ctrl_c_keeps_what_a_genicam_camera_gave(tmp_path):
    run = tmp_path / "run"
    process = start(run, "--cti", VIKY, "--serial", 1, "--frames", 10_000)
    wait_for("frames/*.png", run, 3, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
    table = toml_of(run)["frames"]
    assert table["kept"] == len(pictures(run)) >= 3
    assert table["kept"] + table["lost"] + table["incomplete"] == len(rows_of(run))


def test_a_producer_with_several_cameras_lists_them(tmp_path, capsys):
    assert capture(tmp_path / "run", "--cti", VIKY) == 69
    assert "cameras match" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--line", "--serial", "4711"), "--serial goes with --cti only"),
        (("--folder", "x", "--size", "64x64"), "--size goes with --line only"),
        (("--line", "--camera", "cam1"), "--camera goes with --config only"),
        (("--cti", "x.cti", "--rate", "5"), "--rate goes with --folder or --video or --line only"),
        (("--line", "--size", "10x10"), "width"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(tmp_path, capsys, arguments, hint):
    assert capture(tmp_path / "run", *arguments) == 78
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "one of the arguments --config --cti --folder --video --line is required"),
        (("--line", "--folder", "x"), "not allowed with"),
        (("--line", "--frames", "0"), "'0' is no whole number from 1 up"),
        (("--line", "--size", "64"), "give it as in 640x480"),
        (("--cti", "x.cti", "--feature", "Gain"), "NAME=VALUE"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, arguments, hint):
    with pytest.raises(SystemExit) as exit_:
        capture(tmp_path / "run", *arguments)
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert hint in said
    assert len(said.splitlines()) == 1
