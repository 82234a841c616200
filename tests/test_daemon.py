"""The daemon as a user runs it: a real process, real signals, real sockets, real files."""

import os
import signal
import socket
import sqlite3
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from helpers_daemon import Box, events_until, heartbeat_state, line_source, verdicts
from helpers_recipe import activate_version, bad_frame, good_frame, rewrite_recipe, write_recipe

from inspectord.client import Heartbeat, Inspected
from inspectord.messages import Reason, Verdict


@pytest.fixture
def box(tmp_path):
    box = Box(tmp_path)
    yield box
    box.kill()


def journal(box):
    with sqlite3.connect(Path(box.config["state_dir"]) / "journal.sqlite") as database:
        return database.execute("SELECT camera, seq, verdict, reason FROM verdicts ORDER BY id").fetchall()


def folder_of(box, frames, name="parts"):
    folder = box.folder / name
    folder.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:03d}.png"), frame)
    return folder


def is_camera_lost(event):
    return isinstance(event, Inspected) and event.message.reason is Reason.CAMERA_LOST


def totals(box):
    return next(line for line in box.log() if line["event"] == "stopped")


def camera_pid(client, name="cam1"):
    state = client._requests.ask({"what": "status"}, 2)["state"]
    return state["cameras"][name]["pid"]


def test_a_folder_runs_to_its_end_with_one_verdict_per_image(box):
    frames = [good_frame(), bad_frame(), np.zeros((64, 64, 1), np.uint8), good_frame(32, 32), good_frame()]
    folder = folder_of(box, frames)
    (folder / "005.png").write_bytes(b"no image")
    box.add_camera({"kind": "folder", "path": str(folder), "rate_hz": 20}, deadline_ms=2000)
    box.start()
    assert box.wait() == 0
    assert [row[1:4] for row in journal(box)] == [
        (1, "PASS", "within_limit"),
        (2, "REJECT", "over_limit"),
        (3, "NOT_INSPECTED", "not_finite"),
        (4, "NOT_INSPECTED", "wrong_shape"),
        (5, "PASS", "within_limit"),
        (6, "NOT_INSPECTED", "unreadable"),
    ]
    assert {key: totals(box)[key] for key in ("verdicts", "passed", "rejected")} == {
        "verdicts": 6,
        "passed": 2,
        "rejected": 1,
    }
    rejects = sorted(path.suffix for path in Path(box.config["state_dir"]).rglob("rejects/*/*/*"))
    assert rejects == [".jpg", ".json", ".png"]


def test_a_simulated_line_of_so_many_parts_ends_by_itself(box):
    box.add_camera(line_source(parts=60), deadline_ms=2000)
    box.start()
    assert box.wait() == 0
    assert [row[1] for row in journal(box)] == list(range(1, 61))


def test_several_cameras_count_each_for_itself(box):
    box.add_camera(line_source(parts=30), "left", deadline_ms=2000)
    box.add_camera(line_source(parts=20, seed=1), "right", deadline_ms=2000)
    box.start()
    assert box.wait() == 0
    rows = journal(box)
    for name, parts in (("left", 30), ("right", 20)):
        assert [row[1] for row in rows if row[0] == name] == list(range(1, parts + 1))


def test_sigterm_ends_cleanly_and_every_verdict_is_in_the_journal(box):
    box.add_camera(line_source())
    box.start()
    with box.connect() as client:
        seen = verdicts(events_until(client, lambda e: isinstance(e, Inspected) and e.message.seq >= 30))
        children = psutil.Process(box.process.pid).children(recursive=True)
        box.signal(signal.SIGTERM)
        seen += verdicts(events_until(client, heartbeat_state("stopping")))
    assert box.wait(10) == 0
    rows = [row[1] for row in journal(box)]
    assert rows == list(range(1, totals(box)["verdicts"] + 1))
    assert {message.seq for message in seen} <= set(rows)
    assert children
    assert not any(child.is_running() for child in children)


def test_a_killed_camera_is_one_not_inspected_and_comes_back(box):
    box.add_camera(line_source())
    box.start()
    with box.connect() as client:
        events_until(client, lambda e: isinstance(e, Inspected))
        os.kill(camera_pid(client), signal.SIGKILL)
        lost = verdicts(events_until(client, is_camera_lost))[-1]
        assert lost.verdict is Verdict.NOT_INSPECTED
        after = events_until(client, lambda e: isinstance(e, Inspected) and e.message.seq >= lost.seq + 20)
        assert not any(message.reason is Reason.CAMERA_LOST for message in verdicts(after))
        heartbeat = events_until(client, heartbeat_state("ready"))[-1]
        assert heartbeat.state["cameras"]["cam1"]["restarts"] == 1
    assert box.stop() == 0
    rows = [row[1] for row in journal(box)]
    assert rows == list(range(1, len(rows) + 1))


def test_a_killed_daemon_leaves_no_camera_process_and_the_next_start_is_sound(box):
    box.add_camera(line_source())
    box.start()
    with box.connect() as client:
        events_until(client, lambda e: isinstance(e, Inspected))
        camera = psutil.Process(camera_pid(client))
        box.signal(signal.SIGKILL)
        box.wait()
        camera.wait(5)
    box.config["cameras"][0]["source"]["parts"] = 10
    box.start()
    assert box.wait() == 0


def test_reload_changes_the_recipe_without_losing_a_part(box):
    box.add_camera(line_source())
    box.start()
    with box.connect() as client:
        first = verdicts(events_until(client, lambda e: isinstance(e, Inspected)))[0]
        write_recipe(box.recipes, version="v2", limit=0.9, activate=False)
        activate_version(box.recipes, "demo", "v2")
        box.signal(signal.SIGHUP)
        seen = verdicts(
            events_until(client, lambda e: isinstance(e, Inspected) and e.message.recipe == "demo/v2")
        )
        assert (first.recipe, seen[-1].limit) == ("demo/v1", 0.9)
        assert seen[-1].recipe_hash != first.recipe_hash
        numbers = [message.seq for message in seen]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert box.stop() == 0


def break_weights(box):
    (write_recipe(box.recipes, version="v2", activate=False) / "model.bin").write_bytes(b"other weights")


def break_size(box):
    write_recipe(box.recipes, version="v2", shape=(128, 128, 1), activate=False)


def break_scores(box):
    folder = write_recipe(box.recipes, version="v2", activate=False)
    scores = folder / "golden" / "scores.json"
    scores.write_text(scores.read_text().replace('"score": 0.', '"score": 0.9'))
    rewrite_recipe(folder)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_weights, "changed after fitting"),
        (break_size, "restart the daemon"),
        (break_scores, "its limit does not hold here"),
    ],
)
def test_a_broken_new_recipe_is_refused_loudly_and_the_old_one_runs_on(box, damage, told):
    box.add_camera(line_source())
    box.start()
    with box.connect() as client:
        events_until(client, lambda e: isinstance(e, Inspected))
        damage(box)
        activate_version(box.recipes, "demo", "v2")
        box.signal(signal.SIGHUP)
        events_until(
            client,
            lambda e: isinstance(e, Heartbeat) and told in str(e.state["cameras"]["cam1"]["reload_error"]),
        )
        message = verdicts(events_until(client, lambda e: isinstance(e, Inspected)))[-1]
        assert message.recipe == "demo/v1"
    assert any(line["event"] == "reload refused, the old recipe runs on" for line in box.log())
    assert box.stop() == 0


def test_a_slow_model_is_not_inspected_at_the_deadline(box):
    write_recipe(box.recipes, "slow", work=60)
    box.add_camera(line_source(parts=6, rate_hz=2), product="slow", deadline_ms=60)
    box.start()
    assert box.wait(40) == 0
    rows = journal(box)
    assert [row[1] for row in rows] == list(range(1, 7))
    assert {row[2:4] for row in rows} == {("NOT_INSPECTED", "late")}


def test_a_camera_that_can_not_be_opened_degrades_but_does_not_hold_up_the_rest(box):
    box.add_camera({"kind": "folder", "path": str(box.folder / "nowhere")}, "missing")
    box.add_camera(line_source(), "works")
    box.start()
    with box.connect() as client:
        heartbeat = events_until(client, heartbeat_state("degraded"))[-1]
        assert "no folder" in heartbeat.state["cameras"]["missing"]["last_error"]
        events_until(client, lambda e: isinstance(e, Inspected) and e.message.camera == "works")
    assert box.stop() == 0


def test_systemd_hears_ready_watchdog_and_stopping(box):
    address = str(box.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(15)
        box.add_camera(line_source())
        box.start(NOTIFY_SOCKET=address)
        assert systemd.recv(4096).startswith(b"READY=1\nSTATUS=")
        assert systemd.recv(4096).startswith(b"WATCHDOG=1\nSTATUS=ready")
        box.signal(signal.SIGTERM)
        told = b""
        while b"STOPPING=1" not in told:
            told = systemd.recv(4096)
    assert box.wait() == 0


def test_sigterm_during_the_start_is_heard(box):
    box.add_camera({"kind": "folder", "path": str(box.folder)})
    box.start()
    time.sleep(0.6)
    box.signal(signal.SIGTERM)
    assert box.wait(15) in (0, -signal.SIGTERM)  # before the handlers stand, the signal itself ends it


def test_a_camera_whose_frames_never_fit_is_degraded_not_ready(box):
    """A recipe of another size: every verdict is NOT_INSPECTED, and the state says so."""
    box.add_camera(line_source(width=96, height=64))
    box.start()
    with box.connect() as client:
        events_until(client, heartbeat_state("degraded"))
        events = events_until(client, lambda e: isinstance(e, Heartbeat) and not e.state["inspecting"])
    (trouble,) = events[-1].state["troubles"]
    assert "parts were not inspected, most often wrong_shape" in trouble
    status = box.run("status", "--config", str(box.config_path))
    assert status.returncode == 3
    assert trouble.split(": ")[0] in status.stderr
