"""What an operator is told while a step takes long."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from calibrate import progress
from calibrate.progress import Bars, Plain


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def told(shown, items, clock, each_s, total=None):
    """What is written while each of the items takes so long."""
    out = io.StringIO()
    for _ in shown(Console(file=out, width=80)).track(items, "training, steps", total):
        clock[0] += each_s
    return out.getvalue().splitlines()


def test_a_log_says_every_ten_seconds_how_far_it_is_and_what_is_left(clock):
    assert told(Plain, range(8), clock, 6.0) == [
        "training, steps: 8",
        "training, steps: 2 of 8, 12 s, about 36 s left",
        "training, steps: 4 of 8, 24 s, about 24 s left",
        "training, steps: 6 of 8, 36 s, about 12 s left",
        "training, steps: 8 of 8, 48 s, about 0 s left",
        "training, steps: done, 8 in 48 s",
    ]


def test_of_a_length_that_nobody_knows_nothing_is_foretold(clock):
    assert told(Plain, iter(range(2)), clock, 10.0) == [
        "training, steps",
        "training, steps: 1, 10 s",
        "training, steps: 2, 20 s",
        "training, steps: done, 2 in 20 s",
    ]


def test_a_short_step_is_one_line(clock):
    assert told(Plain, range(8), clock, 1.0) == ["training, steps: 8"]


def test_a_terminal_has_a_bar_with_the_count():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    assert list(Bars(console).track(range(3), "reading", None)) == [0, 1, 2]
    shown = console.file.getvalue()
    assert "reading" in shown
    assert "3/3" in shown


def test_what_is_written_goes_to_standard_error_alone(capsys):
    list(progress.on_stderr().track(range(2), "reading"))
    said = capsys.readouterr()
    assert "reading: 2" in said.err
    assert said.out == ""
