"""Faults of a GenTL producer and its camera, on the real viky.cti through harvesters."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

from tests.faults.line import Line, Setup
from tests.faults.registry import Strike, fault

GENICAM = Setup(kind="genicam")
FEW = 2
BACK_S = 4.0  # harvesters takes a while to load
REOPENED_S = 6.0  # two starts of the camera process, and half a second of back-off between them
ERRORS = ["AccessDenied", "ResourceInUse", "InvalidHandle", "IO", "Error", "RuntimeError", "ValueError"]
OPENING = ("add_file", "update", "create", "remote_device", "num_buffers", "add_callback", "start")
CLOSING = ("stop", "destroy", "reset")


def _reopened(point: str) -> Strike:
    def strike(line: Line, rng: random.Random) -> float:
        orders = line.inject("cam1", point, "raise", kind=rng.choice(ERRORS))
        os.kill(line.camera_pid(), signal.SIGKILL)
        line.carried_out(orders)
        return line.flows(20)

    strike.__doc__ = f"harvesters' {point} raises when the camera is opened"
    return strike


def _closed(point: str) -> Strike:
    def strike(line: Line, rng: random.Random) -> float:
        orders = line.inject("cam1", point, "raise", kind=rng.choice(ERRORS))
        line.inject("cam1", "try_fetch", "raise", kind="Error")
        line.carried_out(orders)
        return line.flows(20)

    strike.__doc__ = f"harvesters' {point} raises when a lost camera is closed"
    return strike


for _point in OPENING:
    fault(GENICAM, name=f"producer_raises_{_point}", recovers_s=REOPENED_S, strikes_a_run=2)(
        _reopened(_point)
    )
for _point in CLOSING:
    fault(GENICAM, name=f"producer_raises_{_point}", recovers_s=BACK_S, strikes_a_run=2)(_closed(_point))


@fault(GENICAM, recovers_s=BACK_S, strikes_a_run=FEW)
def producer_raises_try_fetch(line: Line, rng: random.Random) -> float:
    """harvesters' try_fetch raises in mid-run."""
    line.carried_out(line.inject("cam1", "try_fetch", "raise", kind=rng.choice(ERRORS)))
    return line.flows(20)


@fault(GENICAM, recovers_s=BACK_S, strikes_a_run=FEW)
def producer_raises_queue(line: Line, rng: random.Random) -> float:
    """Giving a buffer back to the producer raises."""
    line.carried_out(line.inject("cam1", "shot", "queue_raises"))
    return line.flows(20)


@fault(GENICAM, recovers_s=2.0 + BACK_S, strikes_a_run=FEW)
def producer_hangs(line: Line, rng: random.Random) -> float:
    """A call of the producer never returns."""
    line.carried_out(line.inject("cam1", "try_fetch", "hang"))
    return line.flows(20)


@fault(GENICAM, strikes_a_run=2, recovers_s=10.0)
def device_gone_and_back(line: Line, rng: random.Random) -> float:
    """The device vanishes for 1.5 to 3 s and comes back; from there on it may take one back-off."""
    gone = line.hold("cam1", "gone", "gone")
    time.sleep(rng.uniform(1.5, 3.0))
    line.lift(gone)
    return line.flows(30)


def _frame(name: str, what: str, *choices: tuple[str, dict[str, Any]]) -> None:
    """A fault of single frames, one of the choices at each strike."""

    def strike(line: Line, rng: random.Random) -> float:
        action, parameters = rng.choice(choices)
        line.carried_out(line.inject("cam1", "shot", action, rng.randint(1, 4), **parameters))
        return line.flows(10)

    strike.__doc__ = what
    fault(GENICAM, name=name)(strike)


_frame("buffers_incomplete", "Buffers come incomplete", ("incomplete", {}))
_frame(
    "frame_ids_gap",
    "Frame ids show lost frames",
    ("gap", {"count": 1}),
    ("gap", {"count": 7}),
    ("gap", {"count": 60}),
)
_frame(
    "frame_ids_wrap",
    "Frame ids of 16 bits wrap from 65535 to 1",
    ("ids_from", {"frame_id": 65534, "wraps": True}),
)
_frame(
    "frame_ids_reset", "Frame ids begin again", ("ids_from", {"frame_id": 1}), ("ids_from", {"frame_id": 0})
)
_frame("frames_twice", "The producer delivers a frame twice", ("twice", {}))
_frame(
    "buffers_wrong",
    "Buffers of a wrong size or pixel format, cut short, or with no image at all",
    ("wrong_size", {}),
    ("wrong_format", {}),
    ("wrong_format", {"format": 0x023000C0}),
    ("short", {}),
    ("no_image", {}),
    ("cut", {}),
)
_frame(
    "timestamps_wrong",
    "Timestamps are absent, zero or run backwards",
    ("exposed", {"ns": None}),
    ("exposed", {"ns": 0}),
    ("exposed", {"ns": 5}),
    ("exposed", {"ns": 2**62}),
)
