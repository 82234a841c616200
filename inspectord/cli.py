"""The command line. Each command imports what it needs itself: the daemon loads no terminal views."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inspectord import __version__
from inspectord.arguments import Parser
from inspectord.errors import InspectordError
from inspectord.journal_cli import add_journal

if TYPE_CHECKING:
    from inspectord.keys import Keys
    from inspectord.settings import Publish, Security

DEGRADED, NOT_INSPECTING = 1, 3  # exit codes of `inspectord status`
DEFAULT_CONFIG = Path("/etc/inspectord/inspectord.toml")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code. What a user can mend is told in one line on stderr."""
    options = _parser().parse_args(argv)
    try:
        code: int = options.command(options)
        return code
    except InspectordError as error:
        print(f"inspectord: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    from inspectord.logs import configure
    from inspectord.settings import load_settings

    settings = load_settings(options.config)
    configure(settings.logging)
    # Imported after the settings are known to be good: OpenVINO takes a moment.
    from inspectord.daemon import run_daemon

    return run_daemon(settings)


def _check(options: argparse.Namespace) -> int:
    from inspectord.logs import configure
    from inspectord.messages import check_encoding
    from inspectord.settings import load_settings

    settings = load_settings(options.config)
    check_encoding(settings.publish.encoding)
    print(json.dumps(settings.model_dump(mode="json", exclude_unset=not options.all), indent=2))
    if not options.all:
        print("every other setting has its default; --all shows them")
    configure(settings.logging.model_copy(update={"level": "error"}))
    from inspectord.places import check_keys, check_source, check_state_dir
    from inspectord.prepare import prepare, recipe_of

    check_state_dir(settings)
    check_keys(settings)
    for camera in settings.cameras:
        inspector = prepare(recipe_of(camera, settings), settings)
        recipe = inspector.recipe
        check_source(camera, recipe)
        print(
            f"camera {camera.name}: recipe {recipe.id} ({recipe.hash[:12]}) on {inspector.device}, "
            "golden scores repeat"
        )
    return 0


def _watch(options: argparse.Namespace) -> int:
    from inspectord.watch import watch

    publish, security = _connection(options)
    keys = _keys(options, security, publish.verdicts, publish.replay)
    return watch(publish.verdicts, publish.replay, keys, options.camera)


def _status(options: argparse.Namespace) -> int:
    from inspectord.ask import ask_once

    publish, security = _connection(options)
    keys = _keys(options, security, publish.replay)
    state = ask_once(publish.replay, {"what": "status"}, keys=keys)["state"]
    print(json.dumps(state, indent=2))
    for trouble in state["troubles"]:
        print(f"inspectord: {trouble}", file=sys.stderr)
    if state["state"] == "ready":
        return 0
    return DEGRADED if state["state"] == "degraded" and state["inspecting"] else NOT_INSPECTING


def _bench(options: argparse.Namespace) -> int:
    from inspectord.bench import bench
    from inspectord.settings import load_settings

    return bench(load_settings(options.config), options.camera, options.seconds)


def _keygen(options: argparse.Namespace) -> int:
    from inspectord.keys import LOCAL, SERVER, keygen
    from inspectord.settings import Security, load_settings

    security = load_settings(options.config).security if options.config else Security()
    folder = options.keys or security.keys_dir
    name = options.client or LOCAL
    for line in keygen(folder, name):
        print(line)
    if name != LOCAL:
        print(f"carry to {name}: {folder / name}.key_secret (then delete it here) and {folder / SERVER}.key")
    return 0


def _install_service(options: argparse.Namespace) -> int:
    from inspectord.service import install

    install(options.station, options.root, options.prefix, options.dry_run)
    return 0


def _connection(options: argparse.Namespace) -> tuple[Publish, Security]:
    """Where to connect: the flags, else the config file, else the defaults."""
    from inspectord.settings import Publish, Security, load_settings

    settings = load_settings(options.config) if options.config else None
    publish, security = (settings.publish, settings.security) if settings else (Publish(), Security())
    endpoints = options.verdicts or publish.verdicts, options.replay or publish.replay
    # Where a daemon listens on all addresses, this machine's own is one of them.
    verdicts, replay = (
        each.replace("tcp://*:", "tcp://127.0.0.1:").replace("tcp://0.0.0.0:", "tcp://127.0.0.1:")
        for each in endpoints
    )
    return publish.model_copy(update={"verdicts": verdicts, "replay": replay}), security


def _keys(options: argparse.Namespace, security: Security, *endpoints: str) -> Keys | None:
    """Those of this box's own client, or of the folder that was given; none for ipc:// and plain."""
    from inspectord.keys import Keys

    if all(endpoint.startswith("ipc://") for endpoint in endpoints):
        return None
    if options.plain or (options.keys is None and security.mode == "plain"):
        return None
    return Keys.load(options.keys or security.keys_dir)


def _parser() -> Parser:
    parser = Parser(
        prog="inspectord",
        description="Inline inspection: one verdict per trigger, from the camera to the PLC.",
    )
    parser.add_argument("--version", action="version", version=f"inspectord {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "run", _run, "run the daemon", "inspectord run --config inspectord.toml")
    check = _add(
        commands,
        "check",
        _check,
        "check configuration and recipes, golden scores included, and print the settings that are given",
        "inspectord check --config inspectord.toml",
    )
    check.add_argument("--all", action="store_true", help="print the settings that have their defaults, too")
    bench = _add(
        commands,
        "bench",
        _bench,
        "measure the whole path on this box, from camera process to subscriber, at rising rates",
        "inspectord bench --config inspectord.toml --seconds 10",
    )
    bench.add_argument("--camera", help="a camera of the configuration; default: the first")
    bench.add_argument("--seconds", type=float, default=10.0, help="per rate; default: %(default)s")
    example = "inspectord watch --camera cam1"
    watch = _add(commands, "watch", _watch, "show verdicts as they come", example, config=None)
    watch.add_argument("--camera", help="only this one")
    status = _add(
        commands,
        "status",
        _status,
        "print a running daemon's state; exit code 0: ready, 1: degraded, 3: a camera is not inspected, "
        "73: no answer",
        "inspectord status --replay tcp://127.0.0.1:5571",
        config=None,
    )
    keygen = _add(
        commands,
        "keygen",
        _keygen,
        "make the keys of daemon and client, and let the client in; what exists is kept",
        "inspectord keygen --config inspectord.toml --client gateway1",
        config=None,
    )
    keygen.add_argument(
        "--client", metavar="NAME", help="a gateway; default: local, for commands on this box"
    )
    _add_install_service(commands)
    for command in (watch, status, keygen):
        command.add_argument("--keys", type=Path, metavar="DIR", help="default: security.keys_dir")
    for command in (watch, status):
        command.add_argument("--verdicts", metavar="ENDPOINT", help="default: as configured")
        command.add_argument("--replay", metavar="ENDPOINT", help="default: as configured")
        command.add_argument("--plain", action="store_true", help="without keys, to a daemon in plain mode")
    add_journal(commands, DEFAULT_CONFIG)
    return parser


def _add_install_service(commands: argparse._SubParsersAction[Parser]) -> None:
    text = "write the systemd unit, account, folders and an example configuration of a station"
    example = "inspectord install-service station1 --dry-run"
    parser = commands.add_parser("install-service", help=text, description=text, epilog=f"example: {example}")
    parser.add_argument("station", metavar="STATION", help="its unit will be inspectord@STATION")
    parser.add_argument("--dry-run", action="store_true", help="print the files instead of writing them")
    parser.add_argument(
        "--prefix", type=Path, metavar="DIR", help="virtual environment to run from; default: this one"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="of the system to write to; default: /"
    )
    parser.set_defaults(command=_install_service)


def _add(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    command: object,
    text: str,
    example: str,
    config: Path | None = DEFAULT_CONFIG,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    parser.add_argument(
        "--config", type=Path, default=config, metavar="FILE", help=f"default: {config or 'the defaults'}"
    )
    parser.set_defaults(command=command)
    return parser
