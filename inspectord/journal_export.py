"""The journal as a CSV or Parquet file, for spreadsheets and data lakes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from inspectord.chain import at_text
from inspectord.errors import JournalError, SettingsError, StateError
from inspectord.journal_read import SUPERSEDED, batches, opened

Format = Literal["csv", "parquet"]
Record = dict[str, Any]

# Columns and their types in Parquet; boxes as JSON. All but the first two and last two are the message's.
TYPES = {
    "id": "int64",
    "superseded": "bool",
    "decided_at": "timestamp[ms, UTC]",
    **dict.fromkeys(("station", "camera", "boot_id"), "string"),
    "seq": "int64",
    **dict.fromkeys(("part_id", "verdict", "reason"), "string"),
    **dict.fromkeys(("score", "limit"), "float64"),
    **dict.fromkeys(("recipe", "recipe_hash", "model_hash"), "string"),
    **dict.fromkeys(("trigger_id", "frame_id", "encoder"), "int64"),
    "boxes": "string",
    **dict.fromkeys(("t_exposure_ns", "t_fetch_ns", "t_decided_ns"), "int64"),
    **dict.fromkeys(("inference_ms", "latency_ms", "deadline_ms"), "float64"),
    "simulated": "bool",
    **dict.fromkeys(("previous", "hash"), "string"),
}
# A spreadsheet takes a cell that begins so for a formula, also in the full-width forms; part ids come from
# outside (OWASP, "CSV injection").
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows: from_at <= decided_at < to_at, as texts of chain.at_text; None is all."""

    camera: str | None = None
    from_at: str | None = None
    to_at: str | None = None


def export(journal: Path, output: Path, kind: Format, selection: Selection) -> int:
    """Write the selected rows, all or nothing; how many.

    Raises JournalError for a journal that can't be read, StateError for a file that can't be written,
    SettingsError for Parquet without pyarrow.
    """
    if kind == "parquet" and find_spec("pyarrow") is None:
        raise SettingsError(
            "Parquet needs the pyarrow package, which is not installed; "
            "`pip install pyarrow`, or use --format csv"
        )
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    write = _write_csv if kind == "csv" else _write_parquet
    try:
        count = write(unfinished, _records(journal, selection))
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(output)
    except OSError as error:
        raise StateError(
            f"can't write {output} ({error.strerror or error}); check its folder and free space"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return count


def moment(text: str, end_of_day: bool) -> str:
    """An ISO date or time as decided_at has it, UTC where it names no zone. Raises ValueError on others.

    A date alone is where its day begins, or where it ends.
    """
    with suppress(ValueError):
        day = date.fromisoformat(text) + timedelta(days=end_of_day)
        return at_text(datetime(day.year, day.month, day.day, tzinfo=UTC))
    found = datetime.fromisoformat(text)
    return at_text(found if found.tzinfo is not None else found.replace(tzinfo=UTC))


def _records(journal: Path, selection: Selection) -> Iterator[list[Record]]:
    """Batches of rows as tables of TYPES, up to the row that is the newest now."""
    query = (
        f"SELECT id, message, previous, hash, {SUPERSEDED} FROM verdicts WHERE id > ? AND id <= ?"
        " AND (?3 IS NULL OR camera = ?3) AND (?4 IS NULL OR decided_at >= ?4)"
        " AND (?5 IS NULL OR decided_at < ?5) ORDER BY id"
    )
    with opened(journal) as database:
        newest = database.execute("SELECT COALESCE(MAX(id), 0) FROM verdicts").fetchone()[0]
        values = (newest, selection.camera, selection.from_at, selection.to_at)
        for rows in batches(database, query, values):
            yield [_record(*row) for row in rows]


def _record(number: Any, message: Any, previous: Any, digest: Any, superseded: Any) -> Record:
    try:
        table = json.loads(message)
        record = {name: table.get(name) for name in TYPES}
    except (TypeError, ValueError, AttributeError) as error:
        raise JournalError(
            f"row {number} holds no verdict; `inspectord journal verify` tells more"
        ) from error
    return record | {
        "id": number,
        "superseded": bool(superseded),
        "boxes": json.dumps(record["boxes"], separators=(",", ":")),
        "previous": previous,
        "hash": digest,
    }


def _write_csv(path: Path, batches: Iterator[list[Record]]) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(TYPES)
        for records in batches:
            writer.writerows([_cell(value) for value in record.values()] for record in records)
            count += len(records)
    return count


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe, which shows that it is text."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


def _write_parquet(path: Path, batches: Iterator[list[Record]]) -> int:
    import pyarrow
    import pyarrow.parquet

    kinds = {"timestamp[ms, UTC]": pyarrow.timestamp("ms", tz="UTC")}
    schema = pyarrow.schema(
        [(name, kinds.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in TYPES.items()]
    )
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for records in batches:
            for record in records:
                record["decided_at"] = datetime.fromisoformat(record["decided_at"])
            writer.write_table(pyarrow.Table.from_pylist(records, schema))
            count += len(records)
    return count
