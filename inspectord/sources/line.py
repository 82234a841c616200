"""A simulated line: parts on a belt, triggers at exact times, encoder counts, known defects."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from inspectord.frame import FrameHeader, FrameStatus, Pixels
from inspectord.settings import LineSource
from inspectord.sources.base import Item, Pace, Shape, fitted, shape_of
from inspectord.sources.parts import RenderedPart, render_part, truth

__all__ = ["LineFrames", "RenderedPart", "render_part", "truth"]

COUNTS_PER_PART = 1000  # encoder counts from one part to the next
LEAD_S = 0.05  # the first trigger comes when the first part is rendered


class LineFrames:
    """Part numbers, trigger and frame ids count from 1; fetched_ns is the trigger's own time."""

    waits_for_trigger = False  # its triggers come from its own clock
    backpressure = False

    def __init__(self, source: LineSource, frame_shape: Shape | None, done: int = 0) -> None:
        self._source = source
        self._shape = frame_shape
        self.ended = False
        self._first = self._number = done + 1
        self._rendered: Pixels | None = None

    def __enter__(self) -> Self:
        self._rendered = self._render()  # draws the static part, which takes longest, before the clock starts
        self._pace = Pace(self._source.rate_hz, LEAD_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rendered = None

    def next(self, timeout_s: float) -> Item | None:
        """The next part at its trigger time; late where rendering is slower than the line, never skipped."""
        if self._source.parts is not None and self._number > self._source.parts:
            self.ended = True
            return None
        if self._rendered is None:
            self._rendered = self._render()
        due = self._number - self._first
        if not self._pace.wait(due, timeout_s):
            return None
        header, pixels = self._header(self._pace.due_ns(due)), self._rendered
        self._rendered = None
        self._number += 1
        self._shape = self._shape or shape_of(pixels)
        return fitted(header, pixels, self._shape)

    def _render(self) -> Pixels:
        source = self._source
        return render_part(source.seed, self._number, source.width, source.height, source.defect_rate).pixels

    def _header(self, trigger_ns: int) -> FrameHeader:
        return FrameHeader(
            FrameStatus.OK,
            frame_id=self._number,
            trigger_id=self._number,
            encoder=self._number * COUNTS_PER_PART,
            part_id=f"{self._number:06d}",
            exposed_ns=trigger_ns,
            fetched_ns=trigger_ns,
            simulated=True,
        )
