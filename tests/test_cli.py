"""Every command does what its help says, and its help has an example that the parser takes."""

import io
import json
import math
import re
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest
from helpers_daemon import Box, free_endpoint, line_source

from inspectord import __version__
from inspectord.bench import Run
from inspectord.cli import _parser, main
from inspectord.messages import Verdict

COMMANDS = ["run", "check", "watch", "status", "bench", "install-service", "keygen"]


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    box.add_camera(line_source())
    yield box
    box.kill()


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == f"inspectord {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_each_help_is_a_command_that_parses(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    example = re.search(rf"example: inspectord ({command}.*)$", help_text).group(1)
    assert callable(_parser().parse_args(example.split()).command)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["check", "--confg", "x.toml"],
            "there is no --confg (did you mean --config?); see `inspectord check",
        ),
        (
            ["journal", "export", "--form", "csv"],
            "there is no --form (did you mean --format?); see `inspectord j",
        ),
        (["chekc"], "invalid choice: 'chekc'"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    told = capsys.readouterr().err
    assert exit_.value.code == 2
    assert told.startswith("inspectord: ")
    assert says in told
    assert len(told.splitlines()) == 1


def test_check_prints_the_settings_and_proves_the_recipe(box):
    done = box.run("check", "--config", str(box.config_path))
    assert done.returncode == 0, done.stderr
    given = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert given["cameras"][0]["name"] == "cam1"
    assert "on_broken_recipe" not in given
    assert "--all" in done.stdout
    assert "camera cam1: recipe demo/v1" in done.stdout
    done = box.run("check", "--config", str(box.config_path), "--all")
    effective = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert effective["on_broken_recipe"] == "refuse"


def test_check_tells_a_wrong_recipe_in_one_line(box):
    (box.recipes / "demo" / "v1" / "model.bin").write_bytes(b"")
    done = box.run("check", "--config", str(box.config_path))
    assert done.returncode == 65
    assert done.stderr.startswith("inspectord: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("images", "says"), [(None, "no folder"), ((64, 48, 1), r"is \(64, 48, 1\), recipe demo/v1 needs")]
)
def test_check_sees_a_source_that_can_not_work(tmp_path, images, says):
    box, folder = Box(tmp_path), tmp_path / "images"
    box.add_camera({"kind": "folder", "path": str(folder)})
    if images is not None:
        folder.mkdir()
        cv2.imwrite(str(folder / "1.png"), np.random.default_rng(0).integers(0, 255, images).astype(np.uint8))
    done = box.run("check", "--config", str(box.config_path))
    assert done.returncode in (65, 69)
    assert re.search(says, done.stderr)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"kind": "video", "path": "none.avi"}, "no video file"),
        ({"kind": "genicam", "cti": "none.cti"}, "no GenTL producer"),
    ],
)
def test_check_tells_a_missing_file_as_run_would(tmp_path, source, says):
    box = Box(tmp_path)
    box.add_camera(source)
    done = box.run("check", "--config", str(box.config_path))
    assert done.returncode == 69
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_sees_a_state_dir_that_can_not_be_written(box, tmp_path):
    (tmp_path / "file").write_text("")
    box.config["state_dir"] = str(tmp_path / "file" / "state")
    done = box.run("check", "--config", str(box.config_path))
    assert done.returncode == 73
    assert "state_dir" in done.stderr


def test_status_of_a_running_and_of_an_absent_daemon(box):
    config = str(box.config_path)
    absent = box.run("status", "--config", config)
    assert absent.returncode == 73
    assert "no inspectord answers" in absent.stderr
    box.start()
    box.connect().close()
    time.sleep(1.0)
    running = box.run("status", "--config", config)
    assert running.returncode == 0
    assert json.loads(running.stdout)["state"] == "ready"
    keys = str(box.folder / "keys")
    by_address = box.run("status", "--replay", box.config["publish"]["replay"], "--keys", keys)
    assert json.loads(by_address.stdout)["station"] == "s1"
    box.stop()


def test_watch_prints_plain_lines_where_there_is_no_terminal(box):
    box.start()
    box.connect().close()
    command = box.command("watch", "--config", str(box.config_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        lines = [watching.stdout.readline() for _ in range(5)]
        box.stop()
        while not any(line.startswith("SILENCE") for line in lines):  # a busy machine may have had one before
            lines.append(watching.stdout.readline())
        watching.send_signal(signal.SIGINT)
        assert watching.wait(5) == 130
    said = [line for line in lines if not line.startswith(("SILENCE", "BACK"))]
    assert said
    assert all("cam1" in line and any(verdict in line for verdict in Verdict) for line in said)


def test_watch_ends_quietly_when_its_reader_does(box):
    box.start()
    box.connect().close()
    command = box.command("watch", "--config", str(box.config_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert "cam1" in watching.stdout.readline()
        watching.stdout.close()  # what `| head -1` does
        assert watching.wait(20) == 0
        assert watching.stderr.read() == ""
    box.stop()


def test_the_live_view_shows_verdicts_and_shouts_silence():
    from helpers_daemon import make_message
    from rich.console import Console

    from inspectord.client import Gap, Heartbeat, Inspected, Silence
    from inspectord.watch import View

    def shown(view):
        console = Console(width=140, record=True, file=io.StringIO())
        console.print(view.render())
        return console.export_text()

    view = View()
    camera = {"state": "running", "recipe": "demo/v1", "last_seq": 1, "not_inspected": 0, "restarts": 0}
    cameras = {"cam1": camera | {"last_error": None}}
    view.take(Heartbeat({"station": "s1", "state": "ready", "cameras": cameras}))
    view.take(Inspected(make_message(1, verdict=Verdict.REJECT)))
    assert "part-1" in shown(view)
    assert "REJECT 1" in shown(view)
    assert "ready" in shown(view)
    view.take(Gap("cam1", "0", 2, 3))
    view.take(Silence(1200.0))
    assert "SILENCE for" in shown(view)
    assert "can't be had any more" in shown(view)


def test_bench_prints_a_table_and_the_highest_rate(box):
    done = box.run("bench", "--config", str(box.config_path), "--seconds", "0.6")
    assert done.returncode == 0, done.stderr
    assert "highest rate without a NOT_INSPECTED" in done.stdout
    rows = [line for line in done.stdout.splitlines() if re.match(r"\s+\d+\.\d", line)]
    assert len(rows) == 6


def test_a_rate_at_which_every_part_was_late_has_no_inference_to_tell(recwarn):
    run = Run(50.0, latency_ms=[9.0, 9.5], inference_ms=[math.nan, math.nan], fetched_ns=[0, 20_000_000])
    assert run.line().split("|")[2].strip() == "nan"
    assert not recwarn.list


def test_bench_of_an_unknown_camera_names_those_there_are(box):
    done = box.run("bench", "--config", str(box.config_path), "--camera", "nobody")
    assert done.returncode == 78
    assert "there is cam1" in done.stderr


def test_a_missing_config_is_one_line():
    assert main(["run", "--config", "/nowhere/inspectord.toml"]) == 78
    assert main(["status", "--replay", free_endpoint(), "--plain"]) == 73
