"""The log never holds up a verdict."""

from __future__ import annotations

import contextlib
import os
import time

from inspectord.logs import Lines


def test_lines_come_out_in_order(tmp_path):
    with (tmp_path / "log").open("w") as out:
        lines = Lines(out)
        for number in range(100):
            lines.write(f"{number}\n")
        lines.drain()
    assert (tmp_path / "log").read_text().split() == [str(number) for number in range(100)]


def test_a_reader_that_stalls_delays_nobody_and_what_is_dropped_is_told():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out, os.fdopen(reading) as stalled:
        lines = Lines(out, depth=10)
        lines.write("first\n")
        lines.drain()
        began_s = time.monotonic()
        for number in range(40):
            lines.write(f"{number} {'x' * 9000}\n")  # a pipe holds 64 KiB, so most of these find no room
        assert time.monotonic() - began_s < 0.5
        heard = [stalled.readline()]
        while not any("dropped" in line for line in heard):
            lines.write("more\n")
            heard.append(stalled.readline())
    assert heard[0] == "first\n"


def test_a_reader_that_is_gone_does_not_end_the_program():
    reading, writing = os.pipe()
    os.close(reading)
    out = os.fdopen(writing, "w")
    lines = Lines(out)
    lines.write("nobody\n")
    lines.write("hears\n")
    lines.drain(1.0)
    assert not lines._queue.unfinished_tasks
    with contextlib.suppress(BrokenPipeError):
        out.close()
