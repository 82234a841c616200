"""What the journal forgets: its oldest rows, above a size or an age, a bounded number at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from inspectord.chain import at_text
from inspectord.journal_file import JournalFile

MOST_ROWS = 2000  # a pass: measured 25 ms; four batches, so forgetting is always faster than writing
AGE_EVERY_S = 60.0
STEP_S = 60.0  # slewing by NTP moves both clocks; only a step, or a sleep, parts them
TRUST_S = 86_400.0  # after a step, for a person to notice a wrong clock before it forgets years
log = structlog.get_logger()


class Retention:
    """Called by the journal's thread between two batches. wall and steady are clocks in seconds."""

    def __init__(
        self,
        quota_bytes: int,
        keep_days: float | None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quota_bytes, self._keep_days = quota_bytes, keep_days
        self._wall, self._steady = wall, steady
        self._apart_s = wall() - steady()
        self._believed_from_s = 0.0
        self._age_due_s = 0.0

    def tend(self, file: JournalFile) -> None:
        """One bounded pass; raises what JournalFile raises."""
        if file.used_bytes() > self._quota_bytes:
            self._forget(file, file.oldest(MOST_ROWS), "size")
        elif self._keep_days is not None and self._steady() >= self._age_due_s:
            rows = file.oldest(MOST_ROWS)
            expired = self._expired(rows)
            self._forget(file, rows[:expired], "age")
            if expired < MOST_ROWS:
                self._age_due_s = self._steady() + AGE_EVERY_S

    def _expired(self, rows: list[tuple[int, str]]) -> int:
        """How many of the oldest rows are too old: none where the wall clock can't be believed."""
        assert self._keep_days is not None
        if not self._clock_is_steady():
            return 0
        now = datetime.fromtimestamp(self._wall(), UTC)
        oldest_kept, latest = at_text(now - timedelta(days=min(self._keep_days, 365_000))), at_text(now)
        expired = 0
        for number, (_, decided_at) in enumerate(rows, 1):
            if decided_at < oldest_kept:
                expired = number
            elif decided_at <= latest:
                break  # a row dated in the future tells nothing; those after it do
        return expired

    def _clock_is_steady(self) -> bool:
        now_s, apart_s = self._steady(), self._wall() - self._steady()
        if abs(apart_s - self._apart_s) > STEP_S:
            self._apart_s, self._believed_from_s = apart_s, now_s + TRUST_S
            log.warning("the clock was set; for a day the journal forgets by size only")
        return now_s >= self._believed_from_s

    def _forget(self, file: JournalFile, rows: list[tuple[int, str]], why: str) -> None:
        if rows:
            file.forget(rows[0][0], rows[-1][0], why)
            log.info("oldest verdicts forgotten", why=why, rows=len(rows), up_to=rows[-1][1])
