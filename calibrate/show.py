"""What the commands tell the operator: recipes in words and in a table, results and the next step."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calibrate.capture import Captured
from calibrate.limits import headline, in_words
from calibrate.progress import Progress
from calibrate.store import active_version, products, versions
from inspectord.errors import RecipeError
from inspectord.recipe import Recipe, RecipeToml, load_recipe
from inspectord.signature import has_library, read_signature

HASHES = {"good_frames", "learned"}  # parameters that tell people nothing
PROVENANCE = "provenance.json"  # for people; outside the recipe's hash


def say(console: Console, text: str) -> None:
    """One line as it is: never wrapped, never read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_recipe(console: Console, recipe: Recipe) -> None:
    """Everything a recipe decides, in the order in which a frame meets it."""
    spec = recipe.spec
    state = ", the active version" if _is_active(recipe) else ""
    say(console, f"{recipe.id}{state}: {headline(spec.limits)}")
    rows = {
        "frames": _frames(spec),
        "looks at": _region(spec),
        "tiles": _tiles(spec),
        "model": _model(spec),
        "runs on": f"{spec.runtime.device} in {spec.runtime.words}, OpenVINO {spec.runtime.openvino}",
        "limit": f"a score over {spec.limits.score:.6g} is rejected; at most "
        f"{in_words(spec.limits.wanted_false_reject_rate)} good parts was wanted",
        "found by": f"{spec.limits.method}; {spec.limits.good_parts:,} good parts, {spec.limits.folds}",
        "golden": f"{spec.golden.frames} frames, repeated at every start of the daemon",
        **_provenance(recipe.path),
        "hash": recipe.hash,
        "signed": _signed(recipe),
        "folder": str(recipe.path),
        "report": str(recipe.path / "report.html"),
    }
    for name, text in rows.items():
        say(console, f"  {name + ':':10} {text}")
    if blindness := recipe.blindness:
        say(console, f"  WARNING:   blind: {blindness}")


def list_recipes(console: Console, recipes_dir: Path, progress: Progress) -> None:
    """All products and versions; a damaged one is listed as such, with the reason below the table."""
    names = products(recipes_dir)
    if not names:
        say(console, f"no recipes in {recipes_dir}; make one with `calibrate fit FOLDER --product NAME`")
        return
    columns = ("product", "version", "active", "limit", "good parts", "proven", "estimated", "signed by", "")
    table = Table(*columns, box=None)
    damaged, blind = [], []
    known = [(product, version) for product in names for version in versions(recipes_dir, product)]
    for product, version in progress.track(known, "checking versions"):
        try:
            recipe = load_recipe(recipes_dir / product / version)
            blindness = recipe.blindness
            cells = [*_cells(recipe), "blind" if blindness else ""]
            if blindness:
                blind.append(f"{recipe.id}: {blindness}")
        except RecipeError as error:
            damaged.append(str(error))
            cells = ["damaged", "", "", "", "", ""]
        active = "yes" if active_version(recipes_dir, product) == version else ""
        table.add_row(*(Text(cell) for cell in (product, version, active, *cells)))
    console.print(table)
    for word, reasons in (("blind", blind), ("damaged", damaged)):
        for why in reasons:
            say(console, f"{word}: {why}")


def _cells(recipe: Recipe) -> list[str]:
    limits = recipe.spec.limits
    rates = limits.proven_false_reject_rate, limits.estimated_false_reject_rate
    signature = read_signature(recipe.path)
    signer = "" if signature is None else signature.fingerprint[:16]
    return [f"{limits.score:.6g}", f"{limits.good_parts:,}", *map(in_words, rates), signer]


def _signed(recipe: Recipe) -> str:
    """By whom, and whether that holds; whom to trust is for the daemon's configuration to say."""
    signature = read_signature(recipe.path)
    if signature is None:
        return "by nobody"
    if not has_library():
        return f"by {signature.fingerprint}, not checked: that needs inspectord[signing]"
    if not signature.fits(recipe.spec.product, recipe.hash):
        return f"WRONGLY: the signature in the name of {signature.fingerprint} is not of these contents"
    return f"by {signature.fingerprint}"


def _is_active(recipe: Recipe) -> bool:
    return (recipe.path.parent / "active").resolve() == recipe.path


def _frames(spec: RecipeToml) -> str:
    frame = spec.frame
    boxed = ", other sizes scaled and padded" if frame.letterbox else ""
    return f"{frame.width}x{frame.height} {frame.pixel_format}{boxed}"


def _region(spec: RecipeToml) -> str:
    x, y, width, height = spec.region.roi
    whole = (width, height) == (spec.frame.width, spec.frame.height)
    where = "the whole frame" if whole else f"{width}x{height} pixels from {x},{y}"
    ignored = f", {spec.region.ignored_fraction:.1%} of it ignored" if spec.region.ignored_fraction else ""
    return where + ignored


def _tiles(spec: RecipeToml) -> str:
    tiles = spec.tiles
    scaled = "" if tiles.scale == 1 else f", the frame scaled by {tiles.scale:.3g}"
    count = tiles.rows * tiles.columns
    cut = "one" if count == 1 else f"{tiles.rows} x {tiles.columns}, overlap {tiles.overlap},"
    return f"{cut} of {tiles.width}x{tiles.height}{scaled}; a map cell every {tiles.cell_px:.3g} frame pixels"


def _model(spec: RecipeToml) -> str:
    model = spec.model
    settings = ", ".join(
        f"{key} {value}" for key, value in model.parameters.items() if key not in HASHES and value != 0
    )
    return f"{model.kind} on {model.backbone} ({', '.join(model.layers)}); {settings}"


def _provenance(path: Path) -> dict[str, str]:
    """When and from what; a recipe without it, or with it damaged, is none the worse."""
    try:
        known = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
        return {"fitted": f"{known['fitted']} on {known['host']}, from {known['folders']}"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def captured_lines(captured: Captured, wanted: int) -> list[str]:
    """What came of a capture, and the next step."""
    if not captured.kept:
        return ["interrupted before the first frame; nothing was written"]
    height, width, channels = captured.shape
    kind = "grey" if channels == 1 else "colour"
    lines = [f"{captured.kept} {kind} frames of {width}x{height} are in {captured.run / 'frames'}"]
    if captured.kept < wanted:
        lines.append(f"{wanted - captured.kept} fewer than asked for: {captured.ended}")
    if captured.counts:
        lines.append(f"triggers without a usable frame: {captured.unusable()} (see frames.csv there)")
    run = shlex.quote(str(captured.run))
    lines.append(
        "next: look through the frames, delete any whose part is not good, then "
        f"`calibrate fit {run} --product NAME`"
    )
    return lines


def fitted_lines(recipe: Recipe, active: bool) -> list[str]:
    """What a fit gave, and the next step."""
    spec, product = recipe.spec, recipe.spec.product
    lines = [headline(spec.limits), f"recipe {recipe.id} is {'active' if active else 'stored, not active'}"]
    lines.append(f"report: {recipe.path / 'report.html'}")
    if blindness := recipe.blindness:
        return [*lines, f"it is blind: {blindness}; `calibrate activate` takes it only with `--anyway`"]
    if not active:
        return [*lines, f"next: `calibrate activate {product} {recipe.path.name}` once it convinces you"]
    return [
        *lines,
        f'next: give a camera recipe = "{product}" in inspectord.toml, with recipes_dir = '
        f'"{recipe.path.parent.parent}", and try `inspectord check --config inspectord.toml`; then '
        "`inspectord run --config inspectord.toml`, or `systemctl reload inspectord@STATION` where it runs",
    ]
