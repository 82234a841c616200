"""The command line. Each command imports what it needs itself: the daemon loads no terminal views."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from inspectord import __version__
from inspectord.errors import InspectordError

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
    print(json.dumps(settings.model_dump(mode="json"), indent=2))
    configure(settings.logging.model_copy(update={"level": "error"}))
    from inspectord.places import check_source, check_state_dir
    from inspectord.prepare import prepare, recipe_of

    check_state_dir(settings)
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

    return watch(*_endpoints(options), options.camera)


def _status(options: argparse.Namespace) -> int:
    from inspectord.ask import ask_once

    state = ask_once(_endpoints(options)[1], {"what": "status"})["state"]
    print(json.dumps(state, indent=2))
    return 0 if state["state"] == "ready" else 1


def _bench(options: argparse.Namespace) -> int:
    from inspectord.bench import bench
    from inspectord.settings import load_settings

    return bench(load_settings(options.config), options.camera, options.seconds)


def _endpoints(options: argparse.Namespace) -> tuple[str, str]:
    """Where to connect: the flags, else the config file, else the defaults."""
    from inspectord.settings import Publish, load_settings

    publish = load_settings(options.config).publish if options.config else Publish()
    endpoints = options.verdicts or publish.verdicts, options.replay or publish.replay
    # Where a daemon listens on all addresses, this machine's own is one of them.
    verdicts, replay = (
        each.replace("tcp://*:", "tcp://127.0.0.1:").replace("tcp://0.0.0.0:", "tcp://127.0.0.1:")
        for each in endpoints
    )
    return verdicts, replay


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inspectord",
        description="Inline inspection: one verdict per trigger, from the camera to the PLC.",
    )
    parser.add_argument("--version", action="version", version=f"inspectord {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "run", _run, "run the daemon", "inspectord run --config inspectord.toml")
    _add(
        commands,
        "check",
        _check,
        "check configuration and recipes, golden scores included, and print the effective settings",
        "inspectord check --config inspectord.toml",
    )
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
        "print a running daemon's state; exit code 0: ready, 1: not, 73: no answer",
        "inspectord status --replay tcp://127.0.0.1:5571",
        config=None,
    )
    for command in (watch, status):
        command.add_argument("--verdicts", metavar="ENDPOINT", help="default: as configured")
        command.add_argument("--replay", metavar="ENDPOINT", help="default: as configured")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
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
