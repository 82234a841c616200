"""What the watchdog is told, and when it is told nothing."""

import gc
import time

import pytest

from inspectord import growth, health
from inspectord.health import Health, backoff_s, spawn
from inspectord.pauses import Pauses
from inspectord.process import feed_period_s


def test_a_silent_thread_is_stuck_after_its_patience_but_not_while_it_waits_for_a_disk(monkeypatch):
    monkeypatch.setattr(health, "PATIENCE_S", 0.05)
    stages = Health()
    stages.beat("inspect-cam1")
    stages.beat("journal")
    stages.excuse("journal")
    assert stages.stuck() == []
    time.sleep(0.08)
    assert stages.stuck() == ["inspect-cam1"]
    assert min(stages.ages_s().values()) > 0.05  # the age of both is told all the same
    stages.beat("journal")
    time.sleep(0.08)
    assert stages.stuck() == ["inspect-cam1", "journal"]
    stages.beat("inspect-cam1")
    assert stages.stuck() == ["journal"]


def test_a_thread_that_dies_fails_the_daemon_and_one_that_ends_is_forgotten():
    stages = Health()

    def dies():
        raise ValueError("unforeseen")

    spawn("ends", lambda: None, stages).join(1)
    assert stages.ages_s() == {}
    assert stages.failure is None
    spawn("dies", dies, stages).join(1)
    assert "thread dies died" in stages.failure


@pytest.mark.parametrize(
    ("asked", "period_s"), [("", 1.0), ("20000000", 1.0), ("1500000", 0.5), ("0", 1.0), ("x", 1.0)]
)
def test_the_watchdog_is_fed_three_times_within_what_the_unit_asks(monkeypatch, asked, period_s):
    monkeypatch.setenv("WATCHDOG_USEC", asked)
    assert feed_period_s() == period_s


def test_the_back_off_has_a_ceiling_however_long_it_goes_on():
    assert [backoff_s(n) for n in (1, 2, 3, 100_000)] == [0.0, 0.5, 1.0, 10.0]


def test_garbage_is_collected_between_parts_and_at_the_latest_all_the_same(monkeypatch):
    idle = False
    pauses = Pauses(lambda: idle)
    pauses.start()
    try:
        assert not gc.isenabled()
        monkeypatch.setattr("inspectord.pauses.EVERY_S", 0.0)
        pauses.poll()
        assert pauses.longest_ms == 0
        idle = True
        pauses.poll()
        once_ms = pauses.longest_ms
        assert once_ms > 0
        idle = False
        monkeypatch.setattr("inspectord.pauses.AT_LATEST_S", 0.0)
        before = gc.get_stats()[2]["collections"]
        pauses.poll()
        assert gc.get_stats()[2]["collections"] == before + 1
    finally:
        pauses.close()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_memory_that_a_compiled_model_takes_is_no_flood(monkeypatch):
    resident = 100 << 20
    monkeypatch.setattr(growth, "resident_bytes", lambda: resident)
    monkeypatch.setattr(growth, "SETTLE_S", 0.0)
    watch, stages = growth.Growth(), Health()
    resident += growth.MOST_BYTES * 2
    with stages.load():
        assert not watch.is_suspicious(is_ours=stages.is_loading)
    resident += growth.MOST_BYTES * 2
    assert not stages.is_loading
    assert watch.is_suspicious(is_ours=stages.is_loading)


def test_the_picture_of_a_large_frame_is_no_flood(monkeypatch):
    """Drawing the overlay of 12 megapixels takes 472 MB for a moment."""
    resident = 100 << 20
    monkeypatch.setattr(growth, "resident_bytes", lambda: resident)
    small, large = growth.Growth(1_000_000), growth.Growth(12_000_000)
    resident += 472 << 20
    assert small.is_suspicious()
    assert not large.is_suspicious()


def test_memory_that_grows_slowly_is_no_flood(monkeypatch):
    """A history of a million verdicts takes a gigabyte in the end."""
    resident = 100 << 20
    monkeypatch.setattr(growth, "resident_bytes", lambda: resident)
    monkeypatch.setattr(growth, "WINDOW_S", 0.0)
    watch = growth.Growth()
    for _ in range(20):
        resident += growth.MOST_BYTES // 2
        assert not watch.is_suspicious()


def test_a_compilation_without_an_end_starves_the_watchdog(monkeypatch):
    monkeypatch.setattr(health, "LOAD_PATIENCE_S", 0.02)
    stages = Health()
    with stages.load():
        assert stages.stuck() == []
        time.sleep(0.05)
        assert stages.stuck() == ["loading"]
    assert stages.stuck() == []
