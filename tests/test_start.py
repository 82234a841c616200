"""A daemon that can't work refuses to start: one line that says what to do, and its own exit code."""

import os
import shutil
import socket

import pytest
from helpers_daemon import Box, line_source
from helpers_recipe import rewrite_recipe


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    yield box
    box.kill()


def exits(box, code, *words, **environment):
    """The daemon refuses to start with this exit code and one line that has these words."""
    done = box.run("run", "--config", str(box.config_path), env=os.environ | environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_port_in_use_stops_the_start_with_the_next_step(box):
    box.add_camera(line_source())
    host, port = box.config["publish"]["replay"].removeprefix("tcp://").split(":")
    with socket.socket() as holder:
        holder.bind((host, int(port)))
        holder.listen()
        exits(box, 73, "is in use", "publish.replay")


def test_a_second_daemon_on_the_same_state_is_refused(box):
    box.add_camera(line_source())
    box.start()
    with box.connect():
        exits(box, 73, "another inspectord uses state_dir")
    box.stop()


def test_a_state_dir_that_can_not_be_written_stops_the_start(box):
    box.add_camera(line_source())
    (box.folder / "file").write_text("")
    box.config["state_dir"] = str(box.folder / "file" / "state")
    exits(box, 73, "can't write to")


def test_an_altered_recipe_stops_the_start(box):
    box.add_camera(line_source())
    with (box.recipes / "demo" / "v1" / "model.bin").open("ab") as file:
        file.write(b"x")
    exits(box, 65, "model.bin was changed after fitting")


def test_a_recipe_of_a_newer_schema_stops_the_start(box):
    box.add_camera(line_source())
    rewrite_recipe(box.recipes / "demo" / "v1", schema_version=9)
    exits(box, 65, "update inspectord")


def test_a_model_whose_golden_scores_do_not_repeat_stops_the_start(box):
    box.add_camera(line_source())
    scores = box.recipes / "demo" / "v1" / "golden" / "scores.json"
    scores.write_text(scores.read_text().replace('"score": 0.', '"score": 0.9'))
    rewrite_recipe(box.recipes / "demo" / "v1")
    exits(box, 65, "its limit does not hold here")


def test_a_damaged_journal_is_set_aside_and_does_not_stop_the_line(box):
    box.add_camera(line_source(parts=5))
    state = box.folder / "state"
    state.mkdir()
    damaged = os.urandom(8192)
    (state / "journal.sqlite").write_bytes(damaged)
    box.start()
    assert box.wait() == 0
    assert [path.read_bytes() for path in state.glob("journal.sqlite.damaged-*")] == [damaged]
    assert box.run("journal", "verify", str(state / "journal.sqlite")).returncode == 0


def test_no_recipe_and_wrong_settings_have_their_own_exit_codes(box):
    box.add_camera(line_source())
    shutil.rmtree(box.recipes / "demo")
    exits(box, 65, "calibrate fit")
    exits(box, 78, "heartbeat_ms", INSPECTORD_PUBLISH__HEARTBEAT_MS="often")
