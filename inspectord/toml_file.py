"""TOML from files that nobody vouches for yet: bounded before it is parsed, and one error for all damage."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

LARGEST_BYTES = 256 * 1024  # a configuration of 100 cameras has 50 kB
DEEPEST = 16  # parts of a table's name


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a file. Raises ValueError for one that is damaged, too large or nested without end.

    Raises OSError where it can't be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES // 1024} kB")
    text = data.decode("utf-8")
    # Measured: tomllib walks the whole name of the table for each key below it: 100 s for a file of 195 kB.
    if any(line.lstrip().startswith("[") and line.count(".") > DEEPEST for line in text.split("\n")):
        raise ValueError(f"a table's name has more than {DEEPEST} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
