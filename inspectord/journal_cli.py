"""`inspectord journal`: verify, export and stats; read-only, also while the daemon runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_journal(commands: Any, default_config: Path) -> None:
    """The command and its subcommands, each with its example."""
    text = "verify, export or sum up the journal, also while the daemon runs"
    journal = commands.add_parser("journal", help=text, description=text)
    below = journal.add_subparsers(required=True, metavar="COMMAND")
    verify = _add(
        below,
        "verify",
        _verify,
        "check that every row is as it was written; exit code 65 names the first that is not",
        "inspectord journal verify --config inspectord.toml",
        default_config,
    )
    verify.add_argument(
        "--head", metavar="ID:HASH", help="journal_head of an earlier heartbeat: that row must still be there"
    )
    export = _add(
        below,
        "export",
        _export,
        "write verdicts to a file",
        "inspectord journal export --format csv --output july.csv --from 2026-07-01 --to 2026-07-31",
        default_config,
    )
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="default: %(default)s")
    export.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="replaced only once complete"
    )
    export.add_argument("--camera", help="only this one")
    export.add_argument("--from", dest="from_at", type=_from, metavar="DATE", help="ISO date or time, UTC")
    export.add_argument(
        "--to", dest="to_at", type=_to, metavar="DATE", help="up to this time, or to the end of this day"
    )
    stats = _add(
        below,
        "stats",
        _stats,
        "count verdicts by camera, reason and recipe, with rates and latencies",
        "inspectord journal stats --json",
        default_config,
    )
    stats.add_argument("--json", action="store_true", help="for machines")


def _verify(options: argparse.Namespace) -> int:
    from inspectord.chain import parse_head
    from inspectord.journal_verify import describe, verify

    path = _path(options)
    witness = parse_head(options.head) if options.head is not None else None
    print("\n".join(describe(verify(path, witness), path)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from inspectord.journal_export import Selection, export

    selection = Selection(options.camera, options.from_at, options.to_at)
    count = export(_path(options), options.output, options.format, selection)
    print(f"{count} rows in {options.output}")
    return 0


def _stats(options: argparse.Namespace) -> int:
    from inspectord.journal_stats import describe, stats

    tables = stats(_path(options))
    print(json.dumps(tables, indent=2) if options.json else "\n".join(describe(tables)))
    return 0


def _path(options: argparse.Namespace) -> Path:
    """The journal that was named, or the configuration's."""
    if options.journal is not None:
        return Path(options.journal)
    from inspectord.settings import load_settings

    return load_settings(options.config).state_dir / "journal.sqlite"


def _from(text: str) -> str:
    return _moment(text, end_of_day=False)


def _to(text: str) -> str:
    return _moment(text, end_of_day=True)


def _moment(text: str, end_of_day: bool) -> str:
    from inspectord.journal_export import moment

    try:
        return moment(text, end_of_day)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; write 2026-07-31") from error


def _add(
    commands: Any, name: str, command: object, text: str, example: str, default_config: Path
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: {example}"
    )
    parser.add_argument("journal", nargs="?", type=Path, metavar="JOURNAL", help="default: as configured")
    parser.add_argument(
        "--config", type=Path, default=default_config, metavar="FILE", help=f"default: {default_config}"
    )
    parser.set_defaults(command=command)
    return parser
