"""Failing inference, lost devices, cameras that can't be started or killed, and the last good recipe."""

import subprocess
import threading
import time

import pytest
from helpers_daemon import Box, events_until, heartbeat_state, line_source
from helpers_recipe import good_frame, rewrite_recipe, write_recipe

from inspectord import examine, prepare
from inspectord.camera import CameraProcess
from inspectord.client import Heartbeat
from inspectord.errors import RecipeError
from inspectord.examine import Examiner
from inspectord.frame import Frame, FrameHeader, FrameStatus
from inspectord.health import Health
from inspectord.inspect import Inspector, Result
from inspectord.last_good import remember, start_with
from inspectord.messages import Reason, Verdict
from inspectord.recipe import load_recipe
from inspectord.ring import Ring
from inspectord.settings import Camera, FolderSource, Inference, LineSource, Settings

SLOTS = 2


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(write_recipe(tmp_path / "recipes"))


def settings_of(tmp_path, **more):
    camera = Camera(name="cam1", recipe="demo", source=LineSource())
    return Settings(
        state_dir=tmp_path,
        recipes_dir=tmp_path / "recipes",
        cameras=[camera],
        **{"inference": {"threads": 1}, **more},
    )


class Bench:
    """An examiner over slots that hold a good frame, driven by the test's own thread."""

    def __init__(self, recipe, remake=None):
        self.slots = [good_frame()[None].copy() for _ in range(SLOTS)]
        self.released = []
        self.inspector = self.fresh(recipe)
        self.examiner = Examiner(self.inspector, self.released.append, remake or self.fresh, Health())

    def fresh(self, recipe):
        inspector = Inspector(recipe, threads=1)
        inspector.bind(self.slots)
        return inspector

    def examine(self, limit_ms=200.0):
        self.examiner.settle()
        frame = Frame(FrameHeader(FrameStatus.OK, 1), 0, 0)
        return self.examiner.examine(frame, time.monotonic_ns() + round(limit_ms * 1e6))

    def until_passed(self, timeout_s=5.0):
        end_s = time.monotonic() + timeout_s
        while self.examine().verdict is not Verdict.PASS:
            assert time.monotonic() < end_s
            time.sleep(0.02)


def test_a_late_inference_is_cancelled_so_that_the_next_frame_is_in_time(tmp_path):
    """Without the cancellation the second frame waits for the first one's answer, and is late as well."""
    slow = load_recipe(write_recipe(tmp_path, work=40))
    bench = Bench(slow)
    began_s = time.monotonic()
    assert bench.examine(60_000).verdict is Verdict.PASS
    full_s = time.monotonic() - began_s
    assert bench.examine(full_s * 50).reason is Reason.LATE  # a twentieth of the time it needs
    began_s = time.monotonic()
    while bench.examiner.busy:
        bench.examiner.settle()
    assert time.monotonic() - began_s < 0.5 * full_s
    assert bench.examine(60_000).verdict is Verdict.PASS


def test_a_model_that_raises_again_and_again_is_compiled_afresh(recipe):
    bench = Bench(recipe)
    bench.inspector.start = raising("device lost")
    for _ in range(examine.MOST_FAILURES):
        assert bench.examine().reason is Reason.INFERENCE_FAILED
    bench.until_passed()
    assert bench.examiner._inspector is not bench.inspector


def test_a_device_that_stays_away_is_tried_again_and_said_until_it_is_back(recipe):
    away = threading.Event()
    away.set()

    def remake(recipe):
        if away.is_set():
            raise RecipeError("no such device")
        return bench.fresh(recipe)

    bench = Bench(recipe, remake)
    bench.inspector.start = raising("device lost")
    for _ in range(examine.MOST_FAILURES):
        bench.examine()
    time.sleep(0.3)
    assert bench.examine().reason is Reason.INFERENCE_FAILED
    assert "no such device" in bench.examiner.trouble
    away.clear()
    bench.until_passed()
    assert bench.examiner.trouble is None


def test_a_model_compiled_afresh_too_late_does_not_undo_a_reload(tmp_path, recipe):
    """The old recipe's compilation ends after a reload whose own model failed as well."""
    newer = load_recipe(write_recipe(tmp_path / "newer", version="v2", limit=0.25))
    slow = threading.Event()

    def remake(wanted):
        if wanted.hash == recipe.hash:
            slow.wait(5)
        return bench.fresh(wanted)

    bench = Bench(recipe, remake)
    bench.inspector.start = raising("device lost")
    for _ in range(examine.MOST_FAILURES):
        bench.examine()
    second = bench.fresh(newer)
    second.start = raising("device lost")
    taking = threading.Thread(target=bench.examiner.swap, args=(second,))
    taking.start()
    while bench.examiner.recipe.hash != newer.hash:
        bench.examiner.settle()
    taking.join(5)
    for _ in range(examine.MOST_FAILURES):
        bench.examine()
    slow.set()
    bench.until_passed()
    time.sleep(0.3)
    bench.examine()
    assert bench.examiner.recipe.hash == newer.hash


def test_a_device_that_gives_no_answer_outside_the_line_is_an_error_not_a_wait(tmp_path, monkeypatch):
    inspector = Inspector(load_recipe(write_recipe(tmp_path, work=40)), threads=1)
    monkeypatch.setattr("inspectord.inspect.SCORE_LIMIT_S", 0.001)
    with pytest.raises(RuntimeError, match="gave no answer"):
        inspector.score(good_frame())
    assert examine.left_behind.pop() is inspector


def test_outputs_of_another_shape_are_not_inspected(recipe):
    bench = Bench(recipe)
    whole = bench.inspector.result
    bench.inspector.result = lambda: Result(0.0, whole().tile_scores[:1], whole().anomaly_map)
    assert bench.examine().reason is Reason.INFERENCE_FAILED
    bench.inspector.result = whole
    assert bench.examine().verdict is Verdict.PASS


def test_a_lost_device_falls_back_only_to_the_one_the_limits_were_calibrated_with(
    tmp_path, recipe, monkeypatch
):
    """HETERO:CPU is another device by name; that it compiles no more stands for a GPU that went away."""
    compile_model = prepare.Inspector

    def without(lost):
        def make(recipe, device=None, threads=0, cache_dir=None):
            if (device or recipe.spec.runtime.device) == lost:
                raise RecipeError(f"the model does not compile on {lost}")
            return compile_model(recipe, device, threads, cache_dir)

        return make

    elsewhere = settings_of(tmp_path, inference=Inference(device="HETERO:CPU", threads=1))
    assert prepare.revive(recipe, elsewhere, ()).device == "HETERO:CPU"
    monkeypatch.setattr(prepare, "Inspector", without("HETERO:CPU"))
    assert prepare.revive(recipe, elsewhere, ()).device == "CPU"
    monkeypatch.setattr(prepare, "Inspector", without("CPU"))
    with pytest.raises(RecipeError, match="does not compile on CPU"):
        prepare.revive(recipe, settings_of(tmp_path), ())


def test_a_broken_recipe_is_refused_unless_the_last_good_one_is_wanted(tmp_path, recipe):
    remember("cam1", recipe, tmp_path)
    broken = write_recipe(tmp_path / "recipes", version="v2")
    (broken / "model.bin").write_bytes(b"half")
    with pytest.raises(RecipeError, match="changed after fitting"):
        start_with(settings_of(tmp_path).cameras[0], settings_of(tmp_path))
    wanted = settings_of(tmp_path, on_broken_recipe="last_good")
    inspector, why = start_with(wanted.cameras[0], wanted)
    assert inspector.recipe.id == "demo/v1"
    assert "changed after fitting" in why


@pytest.mark.parametrize("told", ["", "{", "[]", '{"cam1": 3}', '{"cam1": {"path": "/", "hash": "x"}}'])
def test_a_damaged_memory_of_the_last_good_recipe_is_a_plain_refusal(tmp_path, recipe, told):
    (recipe.path / "model.bin").write_bytes(b"half")
    (tmp_path / "last_good.json").write_text(told)
    wanted = settings_of(tmp_path, on_broken_recipe="last_good")
    with pytest.raises(RecipeError):
        start_with(wanted.cameras[0], wanted)


def test_a_last_good_recipe_that_was_changed_since_does_not_run(tmp_path, recipe):
    remember("cam1", recipe, tmp_path)
    (write_recipe(tmp_path / "recipes", version="v2") / "model.bin").write_bytes(b"half")
    rewrite_recipe(recipe.path, limits={"score": 1e9})  # passes everything, and its own hash is right
    wanted = settings_of(tmp_path, on_broken_recipe="last_good")
    with pytest.raises(RecipeError, match="no longer the recipe that ran here"):
        start_with(wanted.cameras[0], wanted)


def test_the_last_good_recipe_of_another_product_never_judges_this_one(tmp_path, recipe):
    """A changeover to a product whose recipe is broken must not inspect it with the old product's limits."""
    remember("cam1", recipe, tmp_path)
    (write_recipe(tmp_path / "recipes", "other") / "model.bin").write_bytes(b"half")
    wanted = settings_of(tmp_path, on_broken_recipe="last_good")
    with pytest.raises(RecipeError, match="another product"):
        start_with(wanted.cameras[0].model_copy(update={"recipe": "other"}), wanted)


def test_the_daemon_says_that_it_runs_another_recipe_than_the_active_one(tmp_path):
    box = Box(tmp_path)
    box.config["on_broken_recipe"] = "last_good"
    box.add_camera(line_source())
    box.start()
    with box.connect() as client:
        events_until(client, heartbeat_state("ready"))
    assert box.stop() == 0
    (write_recipe(box.recipes, version="v2") / "model.bin").write_bytes(b"half")
    box.start()
    try:
        with box.connect() as client:
            heartbeat = events_until(client, heartbeat_state("degraded"))[-1]
            assert isinstance(heartbeat, Heartbeat)
            assert "demo/v1 runs instead" in heartbeat.state["troubles"][0]
            status = box.run("status", "--config", str(box.config_path))
        assert status.returncode == 1  # degraded, yet every part is inspected
        assert "runs instead" in status.stderr
    finally:
        box.stop()


def test_a_camera_process_that_can_not_be_started_is_a_loss_and_tried_again(tmp_path, monkeypatch):
    ring = Ring.create(2, (64, 64, 1))
    camera = CameraProcess("cam1", FolderSource(path=tmp_path), ring)

    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as without:
        without.setattr(subprocess, "Popen", refuse)
        camera.start()
        events = camera.poll()
        assert camera.state == "lost"
        assert "Too many open files" in events[0].text
        for _ in range(5):
            camera.poll()
    frame = ring.take(0.5)
    assert frame is not None
    assert frame.header.status is FrameStatus.CAMERA_LOST
    assert ring.take(0) is None  # one loss, however many failed starts
    end_s = time.monotonic() + 5
    while camera.pid is None:
        camera.poll()
        assert time.monotonic() < end_s
    camera.stop()
    ring.close()


class Unkillable:
    """A process that a driver holds in the kernel."""

    pid, gone = 0, False

    def poll(self):
        return None

    def kill(self):
        pass

    def wait(self, timeout):
        if not self.gone:
            time.sleep(timeout)
            raise subprocess.TimeoutExpired("camera", timeout)
        return -9


def test_a_camera_process_that_can_not_be_killed_holds_nobody_up_and_is_buried_later(monkeypatch):
    ring = Ring.create(2, (64, 64, 1))
    camera = CameraProcess("cam1", LineSource(width=64, height=64), ring, hung_s=0.05)
    camera.state, camera._has_beat = "running", True
    camera._process = held = Unkillable()
    began_s = time.monotonic()
    events = camera.poll()
    assert [event.kind for event in events] == ["lost"]
    for _ in range(20):
        camera.poll()
    assert time.monotonic() - began_s < 1.0
    assert camera.restarts == 0  # the device is still held
    assert ring.take(0) is None
    held.gone = True
    camera.poll()
    assert ring.take(0.5).header.status is FrameStatus.CAMERA_LOST
    camera.stop()
    ring.close()


def raising(text):
    def fails(*_):
        raise RuntimeError(text)

    return fails
