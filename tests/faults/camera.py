"""Faults of a camera process and of what its source hands out, whatever kind of camera it is."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

from inspectord.messages import Reason
from tests.faults.line import Line, Setup
from tests.faults.registry import fault

SCRIPTED = Setup(kind="scripted")
TRIGGERED = Setup(kind="scripted", triggered=True)
# The third loss within half a minute waits for 1 s, the next for 2 s, ...: 3 s is promised for single ones.
FEW = 2
BACK_S = 3.0


@fault(recovers_s=BACK_S, strikes_a_run=FEW)
def camera_killed(line: Line, rng: random.Random) -> float:
    """The camera process is killed (-9)."""
    os.kill(line.camera_pid(), signal.SIGKILL)
    return line.flows(20)


@fault(recovers_s=BACK_S, strikes_a_run=FEW)
def camera_crashed(line: Line, rng: random.Random) -> float:
    """The camera process dies of a segmentation fault or an abort, as in a driver."""
    os.kill(line.camera_pid(), rng.choice([signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS]))
    return line.flows(20)


@fault(recovers_s=BACK_S, strikes_a_run=FEW)
def camera_killed_handing_over(line: Line, rng: random.Random) -> float:
    """The camera process is killed (-9) with a frame in its hands, before it reached the ring."""
    line.carried_out(line.inject("cam1", "die_handed", "kill"))
    return line.flows(20)


@fault(recovers_s=BACK_S, strikes_a_run=FEW)
def camera_stopped(line: Line, rng: random.Random) -> float:
    """The camera process is stopped for 0.2 to 3 s (SIGSTOP, SIGCONT)."""
    return _stop(line, rng.choice([0.2, 0.7, 1.5, 3.0]))


@fault(recovers_s=BACK_S, strikes_a_run=FEW, pairs=False)
def camera_stopped_10s(line: Line, rng: random.Random) -> float:
    """The camera process is stopped for 10 s (SIGSTOP, SIGCONT)."""
    return _stop(line, 10.0)


def _stop(line: Line, seconds: float) -> float:
    """Seconds from SIGCONT to inspected parts."""
    pid = line.camera_pid()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
    return line.flows(20)


@fault(SCRIPTED, recovers_s=BACK_S, strikes_a_run=FEW)
def source_raises(line: Line, rng: random.Random) -> float:
    """The source raises while it waits for a frame."""
    kind = rng.choice(["SourceError", "RuntimeError", "MemoryError"])
    line.carried_out(line.inject("cam1", "next", "raise", kind=kind))
    return line.flows(20)


@fault(SCRIPTED, recovers_s=2 * BACK_S, strikes_a_run=2)
def source_raises_opening(line: Line, rng: random.Random) -> float:
    """The camera process is killed, and its successor can't open the source once."""
    orders = line.inject("cam1", "open", rng.choice(["raise", "exit"]))
    os.kill(line.camera_pid(), signal.SIGKILL)
    line.carried_out(orders)
    return line.flows(20)


@fault(SCRIPTED, recovers_s=2.0 + BACK_S, strikes_a_run=FEW)
def source_hangs(line: Line, rng: random.Random) -> float:
    """The source hangs for ever in a call; the process is replaced after 2 s of silence."""
    line.carried_out(line.inject("cam1", "next", "hang"))
    return line.flows(20)


@fault(SCRIPTED)
def frames_without_pixels(line: Line, rng: random.Random) -> float:
    """Some frames are lost, incomplete or unreadable."""
    status = rng.choice(["LOST", "INCOMPLETE", "UNREADABLE"])
    line.carried_out(line.inject("cam1", "next", "status", status=status, count=rng.randint(1, 12)))
    return line.flows(10)


@fault(SCRIPTED)
def frames_of_wrong_size(line: Line, rng: random.Random) -> float:
    """Some frames have another size or more channels than the recipe."""
    shape = rng.choice([(32, 48, 1), (128, 128, 1), (64, 64, 3), (1, 1, 1)])
    line.carried_out(line.inject("cam1", "next", "wrong_size", shape=shape, count=rng.randint(1, 12)))
    return line.flows(10)


@fault(SCRIPTED)
def times_of_camera_wrong(line: Line, rng: random.Random) -> float:
    """The camera's own timestamps are absent, run backwards or lie in the far future."""
    ns = rng.choice([0, 1, 123_456_789, 2**62])
    line.inject("cam1", "next", "exposed", ns=ns, count=10)
    return line.flows(10, count=12)


@fault(SCRIPTED)
def ids_of_camera_jump(line: Line, rng: random.Random) -> float:
    """The camera's frame ids start again, or jump."""
    line.carried_out(
        line.inject("cam1", "next", "ids_from", frame_id=rng.choice([0, 1, 65535, 2**31, 2**48]))
    )
    return line.flows(10)


@fault(TRIGGERED)
def line_stopped(line: Line, rng: random.Random) -> float:
    """The line stands still: the box must stay ready, and inspect the first part after it."""
    seconds = rng.uniform(2.0, 4.0)
    since_ns = time.monotonic_ns()
    line.carried_out(line.inject("cam1", "next", "stop", seconds=seconds))
    began_s = time.monotonic()
    line.recorder.wait(lambda: time.monotonic() - began_s > seconds - 0.3, seconds + 5)
    beats = [state for t_ns, state in line.recorder.beats if t_ns > since_ns]
    if line.alone:
        assert {state["state"] for state in beats} == {"ready"}, "a line that stands still is no fault"
        assert beats[-1]["cameras"]["cam1"]["state"] == "armed"
    return line.flows(10)


@fault(Setup(kind="scripted", ring_slots=16))
def burst(line: Line, rng: random.Random) -> float:
    """Parts come at 5 times the rate for a while."""
    count = rng.randint(50, 120)
    line.carried_out(line.inject("cam1", "next", "burst", count=count, factor=5.0))
    line.parts(count)
    return line.flows(10)


@fault(Setup(kind="scripted", cameras=2), strikes_a_run=FEW, recovers_s=BACK_S)
def one_of_two_killed(line: Line, rng: random.Random) -> float:
    """One of two cameras is killed (-9): the other loses nothing."""
    pid, seen = line.camera_pid("cam2"), len(line.recorder.heard)
    os.kill(pid, signal.SIGKILL)
    took_s = line.flows(20)
    others = [each.message for each in line.recorder.heard[seen:] if each.message.camera == "cam1"]
    if line.alone:
        assert others
        assert not any(message.reason is Reason.CAMERA_LOST for message in others)
    return took_s
