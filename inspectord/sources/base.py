"""What every source of frames promises, and the clock of those that pace themselves."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from types import TracebackType
from typing import Protocol, TypeAlias

from inspectord.frame import FrameHeader, FrameStatus, Pixels, letterbox

Item: TypeAlias = tuple[FrameHeader, Pixels | None]
Shape: TypeAlias = tuple[int, int, int]

log = logging.getLogger(__name__)


class FrameSource(Protocol):
    """A camera or a replay, opened by `with`, which raises SourceError where it can't be had."""

    waits_for_trigger: bool  # no frame is then no fault: armed, line stopped
    backpressure: bool  # may wait for a free slot, so that a replay loses nothing
    ended: bool  # nothing will come any more

    def __enter__(self) -> FrameSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def next(self, timeout_s: float) -> Item | None:
        """The next trigger: pixels uint8 of shape (height, width, channels), 1 grey or 3 BGR, or None.

        None for the whole item: nothing within timeout_s. The pixels may be overwritten by the following
        next(). Raises SourceError where the source is lost.
        """
        ...


class Pace:
    """Due times on the monotonic clock, one every 1/rate_hz from the first; none is ever skipped."""

    def __init__(self, rate_hz: float, lead_s: float = 0.0) -> None:
        self._rate_hz = rate_hz
        self._start_ns = time.monotonic_ns() + round(lead_s * 1e9)

    def due_ns(self, number: int) -> int:
        """Due time of trigger number 0, 1, 2, ...; computed from the start, so that no rounding adds up."""
        return self._start_ns + round(number * 1e9 / self._rate_hz)

    def left_s(self, number: int) -> float:
        """Seconds until a trigger is due; negative where it is late."""
        return (self.due_ns(number) - time.monotonic_ns()) / 1e9

    def wait(self, number: int, timeout_s: float) -> bool:
        """True once the trigger is due; False after timeout_s."""
        left_s = self.left_s(number)
        if left_s > timeout_s:
            time.sleep(timeout_s)
            return False
        if left_s > 0:
            time.sleep(left_s)
        return True


def stamped(header: FrameHeader) -> FrameHeader:
    """The header, fetched now."""
    return replace(header, fetched_ns=time.monotonic_ns())


def shape_of(pixels: Pixels) -> Shape:
    height, width, channels = pixels.shape
    return height, width, channels


def fitted(header: FrameHeader, pixels: Pixels, shape: Shape, boxed: bool = False) -> Item:
    """The frame as the recipe needs it, or its header as WRONG_SHAPE; boxed scales and pads other sizes.

    Channels are never converted: a grey recipe learnt other values than a colour file holds.
    """
    if boxed and pixels.shape[2] == shape[2] and pixels.shape != shape:
        pixels = letterbox(pixels, shape[1], shape[0])
    if pixels.shape == shape:
        return header, pixels
    log.warning(
        "%s is %s, the recipe needs %s (height, width, channels); convert it or fit a recipe for this size",
        header.part_id or f"frame {header.frame_id}",
        pixels.shape,
        shape,
    )
    return replace(header, status=FrameStatus.WRONG_SHAPE), None
