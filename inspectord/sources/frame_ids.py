"""Lost frames, told from gaps in a camera's own frame numbers."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

RESET_JUMP = 10_000  # a larger jump is a camera that counts anew, not so many lost parts
WRAP = 0xFFFF  # GigE block ids of 16 bits go from here to 1, leaving out 0
WRAP_LOSS = 1_000  # back to small numbers with more lost than this is a reset, not a wrap


class FrameIds:
    """Follows the ids of one acquisition; the first one, whatever it is, has no gap before it."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._shown: int | None = None  # by the last frame, not worked out for an incomplete one
        self.counts = False  # the producer's ids have been seen to change

    def lost_before(self, frame_id: int) -> list[int]:
        """The ids that should have come since the last frame."""
        last, self._last = self._last, frame_id
        self.counts = self.counts or self._shown not in (None, frame_id)
        self._shown = frame_id
        if last is None or frame_id == last:  # equal: a producer without frame ids
            return []
        step = self._step(last, frame_id)
        if step is None:
            log.warning("frame ids jump from %d to %d: taken as a reset, not as lost frames", last, frame_id)
            return []
        return [_after(last, i, frame_id) for i in range(1, step)]

    def skip_one(self) -> int:
        """The id that an incomplete frame, which shows none, must have had; -1 before the first."""
        if self._last is None:
            return -1
        self._last += 1
        return self._last

    @staticmethod
    def _step(last: int, frame_id: int) -> int | None:
        """From last to frame_id, or None for a reset."""
        step = frame_id - last
        if 0 < step <= RESET_JUMP:
            return step
        wrapped = (frame_id - last) % WRAP
        if step < 0 and last <= WRAP and wrapped <= WRAP_LOSS:
            return max(1, wrapped)
        return None


def _after(last: int, i: int, frame_id: int) -> int:
    """The id i steps after last, on the way to frame_id."""
    ahead = last + i
    return ahead - WRAP if ahead > WRAP and frame_id < last else ahead
