"""Is the journal what the daemon wrote? Walks the chain in batches from its beginning, while it grows too."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspectord.chain import COLUMNS, Head, columns, link
from inspectord.errors import JournalError
from inspectord.journal_file import ANCHOR, DamagedError, read_start
from inspectord.journal_read import BATCH, opened

MOST_GAPS = 20  # told one by one
ROWS = (
    f"SELECT id, {', '.join(COLUMNS)}, message, previous, hash FROM verdicts "
    f"WHERE id > ? ORDER BY id LIMIT {BATCH}"
)
LOWEST_ID = -(2**63)


@dataclass
class Findings:
    """What was found in an unbroken journal."""

    head: Head
    beginning: dict[str, Any]
    rows: int = 0
    superseded: int = 0
    forgotten: int = 0
    gap_count: int = 0
    gaps: list[str] = field(default_factory=list)  # the first MOST_GAPS


def verify(path: Path, witness: Head | None = None) -> Findings:
    """Check every row. Raises JournalError naming the first one that is not as it was written.

    witness is a head seen earlier: its row must be there, unchanged.
    """
    with opened(path) as database:
        try:
            start = read_start(database)
        except DamagedError as damage:
            raise JournalError(f"journal {path}: {damage}; keep it as it is") from damage
        beginning = json.loads(database.execute("SELECT beginning FROM journal").fetchone()[0])
        walk = _Walk(path, Findings(start, beginning), witness)
        for rows, anchor in _batches(database):
            for row in rows:
                walk.take(row, anchor)
            walk.anchor = anchor
        walk.end(database.execute("SELECT COALESCE(SUM(rows), 0) FROM forgotten").fetchone()[0])
    return walk.found


def _batches(database: sqlite3.Connection) -> Iterator[tuple[list[tuple[Any, ...]], Head | None]]:
    """Rows in the order of their ids, each batch with the anchor of the same moment; the last is empty."""
    last_id = LOWEST_ID
    while True:
        database.execute("BEGIN")
        rows = database.execute(ROWS, (last_id,)).fetchall()
        anchor = database.execute(ANCHOR).fetchone()
        database.execute("COMMIT")
        yield rows, Head(*anchor) if anchor is not None else None
        if not rows:
            return
        last_id = rows[-1][0]


class _Walk:
    """Where the walk is; found.head is the last row that was right."""

    def __init__(self, path: Path, found: Findings, witness: Head | None) -> None:
        self.found = found
        self.anchor: Head | None = None
        self._path, self._witness = path, witness
        self._proven = witness is None or witness == found.head
        self._seqs = _Seqs(found)

    def take(self, row: Sequence[Any], anchor: Head | None) -> None:
        number, *stored, message, previous, digest = row
        at = self.found.head
        if (number, previous) != (at.id + 1, at.hash):
            # Retention may have cut before the walk began, or just now.
            if anchor is None or anchor.id < at.id or (number, previous) != (anchor.id + 1, anchor.hash):
                raise self._wrong(number, _why_apart(number, at))
            self.found.forgotten += anchor.id - at.id
            self._proven = self._proven or anchor == self._witness
        if not isinstance(message, str) or link(previous, message) != digest:
            raise self._wrong(number, "its message is not the one of its hash")
        self._check_columns(number, stored, message)
        self.found.head = Head(number, digest)
        self.found.rows += 1
        self._proven = self._proven or self.found.head == self._witness
        self._seqs.see(stored[0], stored[1], stored[2], whole=anchor is None)

    def end(self, forgotten_rows: int) -> None:
        head, anchor = self.found.head, self.anchor
        if anchor is not None and (anchor.id >= head.id or forgotten_rows != anchor.id):
            raise JournalError(
                f"journal {self._path}: its rows end at {head.id}, and it says that it forgot "
                f"{forgotten_rows} up to {anchor.id}; rows were removed by hand, keep it as it is"
            )
        if not self._proven and self._witness is not None:
            raise JournalError(f"journal {self._path}: {self._why_not_proven(self._witness)}")

    def _check_columns(self, number: int, stored: Sequence[Any], message: str) -> None:
        try:
            expected = columns(json.loads(message))
        except (ValueError, AttributeError) as error:
            raise self._wrong(number, f"its message is no verdict ({error})") from error
        for name, value, wanted in zip(COLUMNS, stored, expected, strict=True):
            if value != wanted:
                raise self._wrong(number, f"its {name} is {value!r}, its message says {wanted!r}")

    def _wrong(self, number: int, what: str) -> JournalError:
        return JournalError(
            f"journal {self._path}: row {number} is not as it was written: {what}; "
            f"{self.found.rows} rows before it are, up to {self.found.head}; keep it as it is"
        )

    def _why_not_proven(self, witness: Head) -> str:
        if witness.id > self.found.head.id:
            return f"row {witness.id} is gone: the rows end at {self.found.head.id}, newer ones were cut off"
        if self.anchor is not None and witness.id <= self.anchor.id:
            return f"row {witness.id} was forgotten by retention; give a later head"
        return f"row {witness.id} is another than the one that was seen: rows were written anew"


class _Seqs:
    """Numbers that are missing between the rows of a camera since a start: verdicts never journaled."""

    def __init__(self, found: Findings) -> None:
        self._found = found
        self._last: dict[tuple[str, str], int] = {}

    def see(self, boot_id: str, camera: str, seq: int, whole: bool) -> None:
        """whole: nothing was forgotten, so that the first row must be seq 1."""
        last = self._last.get((boot_id, camera), 0 if whole else seq - 1)
        if seq <= last:
            self._found.superseded += 1
            return
        if seq > last + 1:
            self._found.gap_count += 1
            if len(self._found.gaps) < MOST_GAPS:
                numbers = f"{last + 1}" if seq == last + 2 else f"{last + 1} to {seq - 1}"
                self._found.gaps.append(f"camera {camera}, start {boot_id}: no row for seq {numbers}")
        self._last[boot_id, camera] = seq


def _why_apart(number: int, at: Head) -> str:
    if number > at.id + 1:
        return f"rows {at.id + 1} to {number - 1} before it are missing"
    if number < at.id + 1:
        return "no row can have that id"
    return "it does not follow from the row before it"


def describe(found: Findings, path: Path) -> list[str]:
    """Lines for people; the first one says it all."""
    lines = [
        f"{path}: unbroken, {found.rows} rows ({found.superseded} superseded, {found.forgotten} older ones "
        f"forgotten), head {found.head}"
    ]
    begun_at, note = found.beginning.get("begun_at"), found.beginning.get("note")
    if note:
        lines.append(f"begun {begun_at}: {note}")
    lines += [f"warning: {gap}" for gap in found.gaps]
    if found.gap_count > len(found.gaps):
        lines.append(f"warning: {found.gap_count - len(found.gaps)} more such gaps")
    return lines
