"""Memory that grows as inspection does not: libzmq gathers the parts of one message without a limit."""

from __future__ import annotations

import ctypes
import functools
import os
import time

MOST_BYTES, WINDOW_S = 256 << 20, 60.0  # of growth; the history of verdicts fills a thousand times slower
# A reject's overlay is drawn in floats: measured 38 to 43 bytes a pixel for 5 to 20 megapixels.
PICTURE_BYTES_PER_PIXEL = 48
SETTLE_S = 2.0  # for the connections that are ended, and for their memory to come back
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Growth:
    """Resident memory within the last WINDOW_S, less what is known to be ours."""

    def __init__(self, largest_frame_px: int = 0) -> None:
        self._most = MOST_BYTES + PICTURE_BYTES_PER_PIXEL * largest_frame_px
        self._base, self._since_s, self._settled_s = resident_bytes(), time.monotonic(), 0.0
        self._to_trim = False

    def is_suspicious(self, is_ours: bool = False) -> bool:
        """True once for each such growth; what is left of it after SETTLE_S is taken as ours.

        is_ours: a model is being compiled, which may take any amount.
        """
        now_s = time.monotonic()
        if self._to_trim and now_s >= self._settled_s:
            self._to_trim, self._since_s = False, 0.0
            # The allocator would keep what libzmq freed (measured: 400 MB a time).
            ctypes.CDLL(None).malloc_trim(0)
        now = resident_bytes()
        if is_ours:
            self._settled_s = now_s + SETTLE_S
        if is_ours or now_s < self._settled_s or now_s - self._since_s > WINDOW_S:
            self._base, self._since_s = now, now_s
        elif now - self._base > self._most:
            self._settled_s, self._to_trim = now_s + SETTLE_S, True
            return True
        return False


def resident_bytes() -> int:
    """Of this process alone: the frames in the rings are shared with the cameras."""
    _, resident, shared, *_ = os.pread(_statm(), 100, 0).split()
    return (int(resident) - int(shared)) * PAGE_BYTES


@functools.cache
def _statm() -> int:
    """Opened once: in a flood there may be no descriptor left."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
