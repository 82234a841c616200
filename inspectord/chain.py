"""The chain that makes changes to a journal show: every row carries the hash of the row before it.

    hash = SHA-256(previous + "\\n" + message), in lowercase hexadecimal

message is the row's canonical form, byte for byte as stored: JSON in ASCII, without spaces, keys in the
order of VerdictMessage. previous is the hash of the row with the id before; for the first row it is SHA-256
of the file's `beginning`, which says when and why the file was begun and holds a random salt, so that no two
files share a chain. Ids are 1, 2, 3, ... without a gap, over all cameras. The other columns repeat what the
message says, for queries.

What it shows: a row changed, removed, moved or put in between. What it can't show by itself: newest rows cut
off, or rows written anew by somebody who computes the hashes as well. Heads that were seen outside, in
heartbeats, show that: `inspectord journal verify --head ID:HASH`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from inspectord.errors import JournalError

Value = str | int | float | None
Row = tuple[Value, ...]

# What a row repeats of its message: column and key.
COLUMNS = {
    "boot_id": "boot_id",
    "camera": "camera",
    "seq": "seq",
    "decided_at": "decided_at",
    "part_id": "part_id",
    "verdict": "verdict",
    "reason": "reason",
    "score": "score",
    "score_limit": "limit",
    "recipe_hash": "recipe_hash",
}


class Head(NamedTuple):
    """The newest row of a chain; id 0 before the first."""

    id: int
    hash: str

    def __str__(self) -> str:
        return f"{self.id}:{self.hash}"


def parse_head(text: str) -> Head:
    """ID:HASH as heartbeats carry it. Raises JournalError on anything else."""
    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) < 19) or not is_hash(digest):
        raise JournalError(f"{text[:80]!r} is no head; give ID:HASH as a heartbeat's journal_head says it")
    return Head(int(number), digest)


def is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def link(previous: str, message: str) -> str:
    """The hash of the row that comes after `previous`."""
    return hashlib.sha256(f"{previous}\n{message}".encode("utf-8", "surrogatepass")).hexdigest()


def new_beginning(note: str) -> str:
    """What a new file says about itself, as JSON."""
    return json.dumps({"begun_at": now_text(), "note": note, "salt": secrets.token_hex(16)})


def start_of(beginning: str) -> Head:
    """Where a file's chain starts."""
    return Head(0, hashlib.sha256(beginning.encode("utf-8", "surrogatepass")).hexdigest())


def columns(table: Mapping[str, Any]) -> Row:
    """What a row repeats of its message, in the order of COLUMNS."""
    return tuple(_storable(table.get(key)) for key in COLUMNS.values())


def _storable(value: Any) -> Any:
    # Half a surrogate pair is valid in JSON's escapes but not in SQLite's UTF-8.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def chained(head: Head, messages: Iterable[str]) -> list[Row]:
    """Rows that go on from `head`: id, the columns, message, previous, hash."""
    rows: list[Row] = []
    number, previous = head
    for message in messages:
        number += 1
        digest = link(previous, message)
        rows.append((number, *columns(json.loads(message)), message, previous, digest))
        previous = digest
    return rows


def now_text() -> str:
    return at_text(datetime.now(UTC))


def at_text(moment: datetime) -> str:
    """A moment as decided_at has it, so that texts compare as the moments do."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
