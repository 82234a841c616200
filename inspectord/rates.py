"""How much one peer may ask for: a token bucket each, in a table that can't grow without bound."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_PEERS = 1024  # of more, the one that was quiet longest is forgotten


class Rates:
    """per_s in the long run, burst at once. Not for more than one thread."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()  # -> tokens left, at what time

    def take(self, peer: str) -> bool:
        """One more from this peer; False where that is too many."""
        now_s = self._clock()
        left, then_s = self._peers.pop(peer, (self._burst, now_s))
        left = min(self._burst, left + (now_s - then_s) * self._per_s)
        self._peers[peer] = (left - 1 if left >= 1 else left, now_s)
        if len(self._peers) > MOST_PEERS:
            self._peers.popitem(last=False)
        return left >= 1

    def __len__(self) -> int:
        return len(self._peers)
