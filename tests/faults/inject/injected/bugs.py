"""Seeded bugs in the daemon, to prove the oracle: each breaks one promise, and the oracle must say so.

line.json names one as "bug"; every tenth verdict is then wrong.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

EVERY = 10


def plant(name: str | None) -> None:
    """Break Publisher.send, the judge or the station; called when all of them are imported."""
    from inspectord.publish import Publisher

    if name in JUDGES:
        JUDGES[name]()
    elif name is not None:
        Publisher.send = SENDERS[name](Publisher.send)


def _on_tenth(change: Any) -> Any:
    """A bug that sends something else in the place of every tenth message."""

    def sender(real: Any) -> Any:
        def send(self: Any, message: Any) -> None:
            for each in change(message) if message.seq % EVERY == 0 else (message,):
                real(self, each)

        return send

    return sender


def _swap(real: Any) -> Any:
    kept: list[Any] = []

    def send(self: Any, message: Any) -> None:
        if message.seq % EVERY == 0:
            kept.append(message)
            return
        real(self, message)
        while kept:
            real(self, kept.pop())

    return send


def _slip(real: Any) -> Any:
    """Each verdict with the identity of the part before it."""
    before: list[str] = []

    def send(self: Any, message: Any) -> None:
        wrong = replace(message, part_id=before[-1]) if before and message.seq % EVERY == 0 else message
        before[:] = [message.part_id]
        real(self, wrong)

    return send


def _pass_nan() -> None:
    """`score > limit` as the test for a reject: NaN compares false, and passes."""
    from inspectord import examine, judge
    from inspectord.messages import Reason, Verdict

    def careless(score: float, limit: float) -> tuple[Verdict, Reason]:
        if score > limit:
            return Verdict.REJECT, Reason.OVER_LIMIT
        return Verdict.PASS, Reason.WITHIN_LIMIT

    judge.judge = examine.judge = careless


def _no_deadline() -> None:
    """Deadlines are not kept: a verdict comes whenever inference ends."""
    from inspectord import station

    station.Station._deadline_ns = lambda self, header: time.monotonic_ns() + 10**10


def _stale_score() -> None:
    """Every tenth frame gets the outcome of the frame before, without an inference of its own."""
    from inspectord.station import Station

    real, kept = Station._outcome, []

    def outcome(self: Any, frame: Any) -> Any:
        if kept and frame.index % EVERY == 0:
            return kept[0]
        found = real(self, frame)
        kept[:] = [found]
        return found

    Station._outcome = outcome


SENDERS = {
    "drop_one": _on_tenth(lambda message: ()),
    "send_twice": _on_tenth(lambda message: (message, message)),
    "swap_two": _swap,
    "wrong_part": _slip,
}
JUDGES = {
    "pass_nan": _pass_nan,
    "no_deadline": _no_deadline,
    "stale_score": _stale_score,
}
