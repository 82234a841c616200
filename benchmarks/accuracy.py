"""Accuracy of every configuration on every data set, each measured with the user's own commands.

    python -m benchmarks.accuracy FOLDER [FOLDER ...] [--config NAME=FIT OPTIONS ...] [--seeds 3]
                                  [--json FILE] [--markdown FILE]

FOLDER has train/good, test/good, test/<defect> and, for pixel figures, ground_truth/<defect>/<name>_mask.png
(or <name>.png, as VisA's split script writes them), or holds several such folders, as MVTec AD's does. Any
folder will do. Only train/good reaches the fit, and only it decides what is done about frame sizes.

A cell is one configuration on one data set with one seed: `calibrate fit --seed N`, `calibrate evaluate`, and
the recipe's graph timed alone, each in a process of its own. What fails is told in its place. With --json the
file is written anew after every cell and holds every image's score; the same command goes on where it was
interrupted, and until its end the file keeps the last finished table. A cell is taken from the file only if
data, options and the files they name, seed, code and libraries are the same; so that edits meanwhile do not
part the cells of one table, run it from a checkout of its own.

`--weights random` in a configuration is a network of random numbers, others with every seed: the line that
trained features must clear, as in --config 'random=--backbone resnet18 --weights random'.

Intervals are over images: good and defective ones are drawn anew, the same in every seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._accuracy_cells import (
    Cell,
    Configuration,
    code_digest,
    default_configurations,
    identity,
    measure,
)
from benchmarks._accuracy_data import RULE, DataSet, find_data_sets
from benchmarks._accuracy_rows import Row, remarks, row, tables
from benchmarks._common import finish, in_words, new_report, table
from benchmarks._latency import THREADS
from calibrate.texts import number
from inspectord.errors import InspectordError, SettingsError

SCHEMA = 1


class Cells:
    """Every cell ever measured into a file, and the last finished table; without a file those of this run."""

    def __init__(self, path: Path | None, report: dict[str, Any]) -> None:
        """Raises SettingsError or OSError for a file that the run could not go on from or write to."""
        self._path, self._report, self._code = path, report, code_digest()
        stored = _stored(path) if path is not None and path.exists() else {"rows": [], "cells": []}
        self._all: list[Cell] = stored.pop("cells")
        self._table = stored if stored["rows"] else report | {"rows": []}
        self._write()

    def find(self, wanted: Cell) -> Cell | None:
        """The cell of that identity that this code measured and that did not fail."""
        for cell in self._all:
            same = all(cell[name] == value for name, value in wanted.items())
            if same and cell["code"] == self._code and cell["failed"] is None:
                return cell
        return None

    def add(self, cell: Cell) -> None:
        self._all = [old for old in self._all if not (old["failed"] and _same(old, cell))]
        self._all.append(cell)
        self._write()

    def finish(self, rows: list[Row]) -> None:
        """This run's table takes the place of the last finished one."""
        self._table = self._report | {"rows": rows}
        self._write()

    def _write(self) -> None:
        """The whole file in one step."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.new")
        content = {"schema": SCHEMA, **self._table, "cells": self._all}
        fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, self._path)


def _same(one: Cell, other: Cell) -> bool:
    return all(one[name] == other[name] for name in ("folder", "files", "options", "seed"))


def _stored(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] == SCHEMA and isinstance(found["cells"], list) and isinstance(found["rows"], list):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise SettingsError(f"{path} is no file of this benchmark; give --json another, or remove it")


def run(data: list[DataSet], configurations: list[Configuration], seeds: int, cells: Cells) -> list[Row]:
    """Measure what is not there yet; a row for each configuration on each data set.

    Seed by seed, so that whoever stops early has all of a smaller table.
    """
    found: dict[tuple[str, str], list[Cell]] = {}
    wanted = [(seed, d, c) for seed in range(seeds) for d in data for c in configurations]
    for index, (seed, each, configuration) in enumerate(wanted, 1):
        name = f"[{index}/{len(wanted)}] {each.name}, {configuration.name}, seed {seed}"
        cell = cells.find(identity(each, configuration, seed))
        if cell is None:
            cell = measure(each, configuration, seed, partial(_say_step, name))
            cells.add(cell)
            say(f"{name}: {_in_short(cell)}")
        else:
            say(f"{name}: measured before, {_in_short(cell)}")
        named = cell | {"data": each.name, "configuration": configuration.name}
        found.setdefault((each.name, configuration.name), []).append(named)
    if len({cell["code"] for of_row in found.values() for cell in of_row}) > 1:
        say("warning: the code was changed meanwhile; cells of this table were measured with different code")
    return [row(found[d.name, c.name]) for d in data for c in configurations]


def _in_short(cell: Cell) -> str:
    if cell["failed"] is not None:
        return f"FAILED, {cell['failed']}"
    value, fit = cell["evaluation"]["image_auroc"], cell["fit"]
    figure = "none" if value is None else f"{value:.3f}"
    return f"image AUROC {figure}, fit {fit['seconds']:.1f} s, {cell['latency_ms']['p50']:.2f} ms a frame"


def _say_step(cell: str, step: str) -> None:
    say(f"{cell}: {step}")


def say(line: str) -> None:
    """Progress goes to stderr, so that stdout holds the tables alone."""
    print(line, file=sys.stderr, flush=True)


def notes(report: dict[str, Any], rows: list[Row]) -> list[str]:
    """How to read the tables: what failed, what was measured, and by which rule."""
    sets = [
        f"{data['name']}: {data['train']} good frames fitted; {data['good']} good and {data['defective']} "
        f"defective tested; {data['why']} ({' '.join(data['options']) or 'no option'})"
        for data in report["data"]
    ]
    fits = [
        f"{each['name']}: calibrate fit {' '.join(each['words'])}".rstrip()
        for each in report["configurations"]
    ]
    columns = (
        "Means over seeds; fit MB is the peak of the largest process, ms the median time of the graph on "
        f"{report['latency_threads']} threads. Intervals: bootstrap over images."
    )
    return [*remarks(rows), *sets, *fits, RULE, columns]


def print_report(report: dict[str, Any], rows: list[Row]) -> None:
    """For a reader at a terminal."""
    for each in tables(rows):
        print(f"{each.title}")
        table(each.head, each.rows)
        print()
    print("\n".join(notes(report, rows)))


def markdown(report: dict[str, Any], rows: list[Row]) -> str:
    """The same for a document."""
    machine = f"{in_words(report['machine'])}; {in_words(report['versions'])}"
    lines = "\n".join(f"- {line}" for line in [*notes(report, rows), machine])
    return "\n".join([*(each.markdown() for each in tables(rows)), lines, ""])


def benchmark(args: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """What was measured on what, and the rows. Raises InspectordError where nothing can be measured."""
    data = find_data_sets(args.folders)
    configurations = [Configuration.parse(text) for text in args.config or ()] or default_configurations()
    if len({each.name for each in configurations}) < len(configurations):
        raise SettingsError("two --config have the same name; give each its own")
    report = new_report() | {
        "seeds": args.seeds,
        "latency_threads": THREADS,
        "data": [asdict(each) | {"folder": str(each.folder)} for each in data],
        "configurations": [asdict(each) for each in configurations],
    }
    if args.markdown is not None:
        require_writable(args.markdown)
    cells = Cells(args.json, report)
    rows = run(data, configurations, args.seeds, cells)
    cells.finish(rows)
    return report, rows


def require_writable(path: Path) -> None:
    """Raise OSError now rather than behind the last hour; what is there stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    path.open("a", encoding="utf-8").close()
    if is_new:
        path.unlink()


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Accuracy of every configuration of `calibrate fit` on every data set.",
        epilog=RULE,
        allow_abbrev=False,
    )
    add = found.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="a data set, or a folder of data sets")
    add(
        "--config",
        action="append",
        metavar="NAME=FIT OPTIONS",
        help="as in 'fine=--tile 128'; may be repeated. Default: `calibrate fit` without options, and every "
        "model kind with every backbone that ships. --weights random: random numbers, by the cell's seed",
    )
    add("--seeds", type=number(1), default=3, metavar="N", help="seeds 0 to N-1; default: %(default)s")
    add(
        "--json", type=Path, metavar="FILE", help="everything, after every cell; go on from it if it is there"
    )
    add("--markdown", type=Path, metavar="FILE", help="also write the tables there")
    return found


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where a cell failed; its row says why."""
    args = parser().parse_args(argv)
    try:
        report, rows = benchmark(args)
        print_report(report, rows)
        finish(report, None)
        if args.markdown is not None:
            args.markdown.write_text(markdown(report, rows), encoding="utf-8")
    except InspectordError as error:
        say(f"accuracy: {error}")
        return error.exit_code
    except OSError as error:
        say(f"accuracy: {error.strerror}: {error.filename}; check the path and the disk")
        return 74
    except KeyboardInterrupt:
        say("accuracy: interrupted" + (f"; the same command goes on from {args.json}" if args.json else ""))
        return 130
    return 1 if any(each["failures"] for each in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
