"""Faults of inference: a device that raises, is slow, hangs, answers nonsense or is gone."""

from __future__ import annotations

import random
import time

from inspectord.messages import Reason, Verdict
from tests.faults.line import Line, Setup
from tests.faults.registry import fault

# An inference that ignores its cancellation is given up after 1 s here, after 2 s in production.
HANG_S = 1.0
HANGING = Setup(examine={"HANG_S": HANG_S}, deadline_ms=200.0)
HANGS_A_RUN = 3  # the next one ends the daemon, which is a fault of its own below


@fault()
def inference_raises(line: Line, rng: random.Random) -> float:
    """An inference raises, when it starts, while it runs, or when it is read."""
    point = rng.choice(["start", "wait", "result"])
    line.carried_out(line.inject("cam1", point, "raise", rng.randint(1, 5)))
    return line.flows(10)


@fault(Setup(deadline_ms=200.0))
def inference_late(line: Line, rng: random.Random) -> float:
    """An inference ends after the deadline: by a moment, or by three times the deadline."""
    late_ms, obeys = rng.choice([190, 201, 260, 600, 900]), rng.random() < 0.5
    line.carried_out(line.inject("cam1", "wait", "late", ms=late_ms, cancellable=obeys))
    return line.flows(10)


@fault(Setup(deadline_ms=200.0))
def inference_slow(line: Line, rng: random.Random) -> float:
    """Every inference takes longer than the line allows, for a second; parts are displaced or late."""
    slow = line.hold("cam1", "wait", "late", ms=rng.choice([60, 150, 250]), cancellable=True)
    time.sleep(1.0)
    line.lift(slow)
    return line.flows(10)


@fault(HANGING, strikes_a_run=HANGS_A_RUN)
def inference_hangs(line: Line, rng: random.Random) -> float:
    """An inference never ends: it is given up, and the model compiled afresh."""
    line.carried_out(line.inject("cam1", "wait", "hang"))
    return line.flows(20)


@fault(HANGING, strikes_a_run=1, pairs=False)
def inference_hangs_again_and_again(line: Line, rng: random.Random) -> float:
    """The device hangs again after every repair: the daemon gives itself up, to be started afresh."""
    orders = line.hold("cam1", "wait", "hang")
    assert line.wait_end(30.0) not in (0, -9)
    line.lift(orders)
    return line.restart()


def _nonsense(line: Line, point: str, **parameters: object) -> float:
    """Every third frame or so; none of these frames may pass, or be a reject with a score."""
    seen = len(line.recorder.heard)
    line.carried_out(line.inject("cam1", "result", point, 5, **parameters))
    took_s = line.flows(10)
    reasons = [each.message.reason for each in line.recorder.heard[seen:]]
    assert not line.alone or reasons.count(Reason.NOT_FINITE) + reasons.count(Reason.INFERENCE_FAILED) >= 5, (
        reasons
    )
    return took_s


@fault()
def score_not_finite(line: Line, rng: random.Random) -> float:
    """The score is NaN or infinite."""
    return _nonsense(line, "score", value=rng.choice(["nan", "inf", "-inf", "1e38", "-3.4e38"]))


@fault()
def tile_or_map_not_finite(line: Line, rng: random.Random) -> float:
    """One tile or one cell of the map is NaN, and the score looks like a good part's."""
    return _nonsense(line, rng.choice(["tiles", "map"]), value="nan")


@fault()
def output_of_wrong_shape(line: Line, rng: random.Random) -> float:
    """The map has another shape than the recipe says."""
    seen = len(line.recorder.heard)
    line.carried_out(
        line.inject("cam1", "result", "shape", 5, shape=rng.choice([(3, 3), (8,), (1, 1, 8, 8), (0, 0)]))
    )
    took_s = line.flows(10)
    faulty = [each.message for each in line.recorder.heard[seen:]]
    assert not line.alone or any(message.verdict is Verdict.NOT_INSPECTED for message in faulty)
    return took_s


@fault()
def device_lost(line: Line, rng: random.Random) -> float:
    """The device is lost: every inference and every compilation raises, until it is back."""
    orders = [line.hold("daemon", point, "raise") for point in ("start", "compile")]
    time.sleep(0.3)
    since_ns = time.monotonic_ns()
    time.sleep(rng.uniform(0.5, 1.5))
    until_ns = time.monotonic_ns()
    line.lift(*orders)
    took_s = line.flows(20)
    during = [h.message for h in line.recorder.heard if since_ns < h.message.t_fetch_ns < until_ns - 10**8]
    assert during or not line.alone, "verdicts go on while the device is lost"
    assert all(message.verdict is Verdict.NOT_INSPECTED for message in during)
    return took_s
