"""The command line. Each command imports what it needs itself, so that --help and errors come at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from calibrate import compare_flags, flags
from calibrate.mishaps import explained
from inspectord import __version__
from inspectord.arguments import Parser
from inspectord.errors import FitError, StateError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from calibrate.progress import Progress
    from inspectord.recipe import Recipe

INTERRUPTED = 130
PIPE_COLUMNS = 160  # tables in a pipe or a file have no window to fit into


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code. What a user can mend is told in one line on stderr."""
    options = _parser().parse_args(argv)
    try:
        code: int = options.command(options)
        return code
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        return _failed(*known)


def _failed(why: str, code: int) -> int:
    print(f"calibrate: {why}", file=sys.stderr)
    return code


def _capture(options: argparse.Namespace) -> int:
    from calibrate.chosen import source_of

    source = source_of(options)
    from calibrate.capture import Wanted, capture
    from calibrate.show import captured_lines

    wanted = Wanted(options.run, source, options.frames, options.wait, options.note)
    captured = capture(wanted, _progress())
    print("\n".join(captured_lines(captured, options.frames)))
    return INTERRUPTED if captured.interrupted else 0


def _fit(options: argparse.Namespace) -> int:
    from calibrate.chosen import fit_options
    from calibrate.store import check_place

    wanted, progress = fit_options(options), _progress()
    check_place(wanted.recipes_dir, wanted.product)
    from calibrate.fit import closer, estimate, fit
    from calibrate.plan import prepare
    from calibrate.show import fitted_lines

    plan = prepare(wanted, progress)
    for line in (*estimate(plan).lines(), *closer(plan)):
        progress.note(line)
    print("\n".join(fitted_lines(fit(plan, progress), wanted.activate)))
    return 0


def _extend(options: argparse.Namespace) -> int:
    from calibrate.extend import Wanted, prepare_extension
    from calibrate.fit import estimate, fit
    from calibrate.show import fitted_lines
    from calibrate.store import check_place

    given = {field.name: getattr(options, field.name) for field in fields(Wanted)}
    asked = {name: value for name, value in given.items() if value is not None}
    wanted, progress = Wanted(**asked | {"folders": tuple(options.folders)}), _progress()
    plan = prepare_extension(wanted, progress)
    check_place(wanted.recipes_dir, plan.options.product)
    for line in estimate(plan).lines():
        progress.note(line)
    print("\n".join(fitted_lines(fit(plan, progress), wanted.activate)))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    _check_file(options.json, "--json")
    from calibrate.store import resolve

    recipe = resolve(options.recipes_dir, options.recipe)
    from calibrate.evaluate import evaluate

    result = evaluate(recipe, options.folder, _progress(), options.threads)
    result.show(_console())
    if options.json is not None:
        options.json.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    return 0


def _check_file(path: Path | None, flag: str) -> None:
    """Before the work whose results go there."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise StateError(f"no file can be written at {path}; give {flag} one in a folder that exists")


def _compare(options: argparse.Namespace) -> int:
    for name in ("json", "html"):
        _check_file(getattr(options, name), f"--{name}")
    from calibrate.compare_wanted import wanted_of

    wanted = wanted_of(options)
    from calibrate.compare import compare, write_results
    from calibrate.compare_worker import interruptible

    with interruptible():
        comparison = compare(wanted, _progress())
    write_results(_console(), comparison, options.html, options.json)
    return 0 if comparison.able() else FitError.exit_code


def _show(options: argparse.Namespace) -> int:
    from calibrate.show import show_recipe
    from calibrate.store import resolve

    show_recipe(_console(), resolve(options.recipes_dir, options.recipe))
    return 0


def _list(options: argparse.Namespace) -> int:
    from calibrate.show import list_recipes

    list_recipes(_console(), options.recipes_dir, _progress())
    return 0


def _activate(options: argparse.Namespace) -> int:
    from calibrate.store import activate

    return _now_active(activate(options.recipes_dir, options.product, options.version, options.anyway))


def _keygen(options: argparse.Namespace) -> int:
    from calibrate.sign import PRIVATE, PUBLIC, make_keys

    fingerprint = make_keys(options.folder)
    print(
        f"key {fingerprint} is made: keep {options.folder / PRIVATE} secret and off the line; copy "
        f"{options.folder / PUBLIC} to each box and name it there as security.trusted_key"
    )
    return 0


def _sign(options: argparse.Namespace) -> int:
    from calibrate.sign import sign

    recipe, fingerprint = sign(options.recipes_dir, options.product, options.version, options.key)
    print(f"recipe {recipe.id} ({recipe.hash[:12]}) is signed by {fingerprint}")
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    try:
        from calibrate.pretrain.command import pretrain
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise StateError("pre-training needs torch: `pip install 'inspectord[train]'`") from error
    print(f"weights: {pretrain(options, _progress())}")
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from calibrate.store import rollback

    return _now_active(rollback(options.recipes_dir, options.product))


def _now_active(recipe: Recipe) -> int:
    if blindness := recipe.blindness:
        print(f"warning: {recipe.id} is blind: {blindness}", file=sys.stderr)
    print(
        f"recipe {recipe.id} is active; a running daemon takes it with `systemctl reload inspectord@STATION`"
    )
    return 0


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPE_COLUMNS)


def _progress() -> Progress:
    from calibrate.progress import on_stderr

    return on_stderr()


def _parser() -> Parser:
    parser = Parser(
        prog="calibrate",
        description="Teach inspectord a product from known-good parts only.",
        epilog="example: calibrate fit photos/good --product bracket; more with calibrate COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"calibrate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (command, text, examples, arguments) in COMMANDS.items():
        epilog = "examples:\n" + "\n".join(f"  {line}\n      {words}" for line, words in examples.items())
        each = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        arguments(each)
        each.set_defaults(command=command)
    return parser


Arguments = Callable[[argparse.ArgumentParser], None]
Command = Callable[[argparse.Namespace], int]
COMMANDS: dict[str, tuple[Command, str, dict[str, str], Arguments]] = {
    "capture": (
        _capture,
        "grab known-good frames from a camera, files or the simulated line into a new folder",
        {
            "calibrate capture runs/monday --config inspectord.toml --camera cam1": "300 good parts, as cam1 "
            "sees them; Ctrl-C ends it sooner and keeps what was grabbed",
            "calibrate capture runs/try --cti producer.cti --serial 4711 --feature PixelFormat=Mono8 "
            "--frames 50": "50 frames of a camera that no configuration knows yet",
            "calibrate capture runs/demo --line --size 320x240 --rate 50 --note 'no camera yet'": "without "
            "any camera: parts of the simulated line",
        },
        flags.add_capture,
    ),
    "fit": (
        _fit,
        "learn a product from known-good frames and publish a recipe, with a limit in false rejects",
        {
            "calibrate fit runs/monday runs/tuesday --product flange": "learn flange from two captured runs "
            "and make the recipe active",
            "calibrate fit good --product flange --roi 40,0,560,480 --tile 256 --overlap 32 "
            "--max-false-rejects 1/5000": "look closely, inside a rectangle only, and reject fewer parts",
            "calibrate fit good --product flange --ignore-polygon '0,0 80,0 0,80' --no-activate": "leave a "
            "corner out; store the recipe, and decide later with calibrate activate",
            "calibrate fit good --product flange --adapt auto": "five minutes more: learn to tell made-up "
            "defects on the good frames, where that finds more",
        },
        flags.add_fit,
    ),
    "extend": (
        _extend,
        "add new known-good frames to what a recipe has learned, as its next version, without a refit",
        {
            "calibrate extend flange runs/wednesday": "good parts that flange's active recipe rejected are "
            "good now; what it learned before it keeps",
            "calibrate extend flange/0002 runs/wednesday --no-activate": "add to version 0002, and decide "
            "later with calibrate activate",
        },
        flags.add_extend,
    ),
    "compare": (
        _compare,
        "fit several model kinds on the same good frames, and say which to take on this box and why",
        {
            "calibrate compare runs/monday --html compared.html": "the kinds that are fitted in "
            "minutes; every fourth frame is held out, and struck by made-up defects, to measure with",
            "calibrate compare good --models padim,patchcore --tile 256 --deadline-ms 40 "
            "--defective rejects": "as the line will run it; what the frames in rejects say is shown, and "
            "decides nothing",
        },
        compare_flags.add_compare,
    ),
    "evaluate": (
        _evaluate,
        "measure a recipe on images with known answers: false rejects, escapes, AUROC, AUPRO",
        {
            "calibrate evaluate flange samples --json figures.json": "samples holds test/good, test/scratch "
            "and so on; every score goes to figures.json",
        },
        flags.add_evaluate,
    ),
    "show": (
        _show,
        "print in words what a recipe looks at, its limit, and how sure that is",
        {"calibrate show flange/0001": "the first version of flange; without /0001 the active one"},
        flags.add_recipe,
    ),
    "list": (
        _list,
        "list all products and versions, and which are active",
        {"calibrate list --recipes /var/lib/inspectord/recipes": "the recipes of the installed daemon"},
        flags.add_recipes,
    ),
    "activate": (
        _activate,
        "make a version the active one, after checking it",
        {"calibrate activate flange 0002": "the daemon runs it from its next reload"},
        flags.add_activate,
    ),
    "keygen": (
        _keygen,
        "make the key pair with which recipes are signed, for boxes that run only signed ones",
        {"calibrate keygen keys": "keys/signing.pem signs; keys/signing.pub.pem goes to the boxes"},
        flags.add_keygen,
    ),
    "sign": (
        _sign,
        "vouch for a version, after checking it: boxes that trust the key will run it",
        {
            "calibrate sign flange 0002 --key keys/signing.pem": "version 0002 of flange; then "
            "calibrate activate flange 0002",
        },
        flags.add_sign,
    ),
    "rollback": (
        _rollback,
        "make the version active that was active before",
        {"calibrate rollback flange": "the new recipe rejects too much: back to the one before it"},
        flags.add_product,
    ),
    "pretrain": (
        _pretrain,
        "train a bundled network anew on photographs and made-up scenes (developers; needs torch)",
        {
            "calibrate pretrain corpus --out runs/own --threads 2": "over an hour on two cores; the same "
            "command continues a run that was stopped"
        },
        flags.add_pretrain,
    ),
}
