"""The wall clock steps by hours and into summer time for the daemon and its cameras, not the machine's."""

from __future__ import annotations

import functools
import random
import struct
import time
from datetime import UTC, datetime

from tests.faults.line import Line, Setup
from tests.faults.preload import lacking, library
from tests.faults.registry import fault

HOUR_S = 3600
STEPS_S = (3, -3, 0.4, -0.4, HOUR_S, -HOUR_S, 24 * HOUR_S, -24 * HOUR_S, -30 * 365 * 24 * HOUR_S)
# A second before Europe's clocks go forward, and before both passes of the hour that comes twice.
CHANGES = (
    datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC),
    datetime(2026, 10, 25, 0, 59, 59, tzinfo=UTC),
    datetime(2026, 10, 25, 1, 59, 59, tzinfo=UTC),
)
ENVIRONMENT = {
    "LD_PRELOAD": str(library("wall_clock")),
    "FAULT_CLOCK": "faults/clock",  # below the line's folder, where the daemon is started
    "TZ": "Europe/Berlin",
}
needs = functools.partial(lacking, "wall_clock")


@fault(Setup(environment=ENVIRONMENT), needs=needs)
def clock_stepped(line: Line, rng: random.Random) -> float:
    """The wall clock steps back or forth, by less than a second up to thirty years."""
    return _step(line, rng.choice(STEPS_S))


@fault(Setup(environment=ENVIRONMENT), needs=needs)
def clock_across_summer_time(line: Line, rng: random.Random) -> float:
    """The wall clock runs into the beginning or the end of summer time."""
    return _step(line, rng.choice(CHANGES).timestamp() - time.time())


@fault(Setup(kind="genicam", environment=ENVIRONMENT), needs=needs)
def clock_stepped_before_idle_camera(line: Line, rng: random.Random) -> float:
    """The wall clock steps back while a camera waits for its next frame: the wait must not become hours."""
    restarts = line.recorder.state["cameras"]["cam1"]["restarts"]
    idle = line.hold("cam1", "idle", "idle")
    time.sleep(0.3)
    step(line, -2 * HOUR_S)
    time.sleep(0.3)
    line.lift(idle)
    took_s = line.flows(20)
    step(line, 0)
    now = line.recorder.state["cameras"]["cam1"]["restarts"]
    assert now == restarts or not line.alone, "the camera process had to be replaced"
    return took_s


def step(line: Line, seconds: float) -> None:
    """Set how far the wall clock of the daemon and its cameras is ahead."""
    path = line.folder / ENVIRONMENT["FAULT_CLOCK"]
    with path.open("r+b") as clock:
        clock.write(struct.pack("q", round(seconds * 1e9)))


def _step(line: Line, seconds: float) -> float:
    """Step, see that the daemon's time of day followed and nothing else did, and step back."""
    began_ns = time.monotonic_ns()
    step(line, seconds)
    took_s = line.flows(10, count=25)
    if line.alone:
        _only_the_time_of_day_changed(line, seconds, began_ns)
    step(line, 0)
    line.flows(10, count=25)
    return took_s


def _only_the_time_of_day_changed(line: Line, seconds: float, since_ns: int) -> None:
    decided_at = datetime.fromisoformat(line.recorder.heard[-1].message.decided_at)
    assert abs(decided_at.timestamp() - time.time() - seconds) < 0.2, f"the clock did not step: {decided_at}"
    states = {state["state"] for t_ns, state in line.recorder.beats if t_ns > since_ns}
    assert states == {"ready"}, states
    late = [h.message for h in line.recorder.heard if h.t_ns > since_ns and h.message.score is None]
    assert not late, f"{len(late)} parts were not inspected"
