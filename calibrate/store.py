"""Recipes on disk: recipes_dir/<product>/<version>/, and `active`, a link that is swapped in one step.

A version is written beside its place and renamed into it, so a half-written recipe is never seen.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inspectord.errors import RecipeError
from inspectord.recipe import Recipe, active_recipe, load_recipe

PRODUCT = re.compile(r"[A-Za-z0-9_-]{1,40}")
VERSION = re.compile(r"[0-9]{4,}")
STAGING = re.compile(r"\.([0-9]{4,})\.staging")
HISTORY = "activations.log"
ANYWAY = " anyway"
# Passes over the half line that a power cut may leave.
EVENT = re.compile(rf"(activate|rollback) ([0-9]{{4,}})(?:{ANYWAY})?\n")


@dataclass(frozen=True, slots=True)
class Staging:
    """A version being written: fill `path`; it becomes `final` when the with-block ends without an error."""

    path: Path
    version: str
    final: Path


@contextmanager
def new_version(recipes_dir: Path, product: str) -> Iterator[Staging]:
    """Reserve the product's next version and publish it whole, or not at all.

    Every file is on the disk before the rename. What a crashed fit left behind is removed here.
    """
    folder = _product_dir(recipes_dir, product)
    with _locked(_made(folder)):
        _remove_abandoned(folder)
        taken = [int(name) for name in _version_names(folder)]
        taken += [int(match[1]) for item in folder.iterdir() if (match := STAGING.fullmatch(item.name))]
        version = f"{max(taken, default=0) + 1:04d}"
        path = _made(folder / f".{version}.staging")
        held = _hold(path)
    try:
        yield Staging(path, version, folder / version)
        _sync_tree(path)
        with _locked(folder):  # or one who counts meanwhile sees neither name, and takes the number again
            os.rename(path, folder / version)
        _sync(folder)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def check_place(recipes_dir: Path, product: str) -> None:
    """Raises RecipeError where new_version couldn't write: said before a long fit, not after it."""
    folder = _product_dir(recipes_dir, product)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"can't write {folder}: {there} allows no new folder; give another with --recipes")


def products(recipes_dir: Path) -> list[str]:
    """Names of the products that have at least one version."""
    if not recipes_dir.is_dir():
        return []
    return sorted(item.name for item in recipes_dir.iterdir() if item.is_dir() and _version_names(item))


def versions(recipes_dir: Path, product: str) -> list[str]:
    """The product's versions, oldest first. Raises RecipeError where there is none."""
    found = _version_names(_product_dir(recipes_dir, product))
    if not found:
        known = ", ".join(products(recipes_dir)) or "none"
        raise RecipeError(
            f"no recipes of {product!r} in {recipes_dir} (products there: {known}); "
            f"make one with `calibrate fit FOLDER --product {product}`, or give --recipes"
        )
    return found


def active_version(recipes_dir: Path, product: str) -> str | None:
    """The version that `active` points to, None where nothing was activated."""
    link = _product_dir(recipes_dir, product) / "active"
    return os.readlink(link) if link.is_symlink() else None


def activate(recipes_dir: Path, product: str, version: str | None = None, anyway: bool = False) -> Recipe:
    """Verify a version (default: the newest) and make it the active one; with anyway a blind one too.

    Raises RecipeError where there is no such version, it does not verify, or is blind; `active` then stays as
    it was.
    """
    recipe = owned_version(recipes_dir, product, version)
    version, blindness = recipe.path.name, recipe.blindness
    if blindness and not anyway:
        raise RecipeError(
            f"{recipe.id} was not activated: {blindness}; see {recipe.path / 'report.html'} and fit "
            "again from more good parts, or give --anyway to run it all the same"
        )
    with _locked(recipes_dir / product):
        if active_version(recipes_dir, product) != version:
            _point_active(recipes_dir / product, version)
            _record(recipes_dir / product, "activate", version, bool(blindness))
    return recipe


def owned_version(recipes_dir: Path, product: str, version: str | None = None) -> Recipe:
    """A product's version (default: the newest), verified. Raises RecipeError where there is no such one."""
    found = versions(recipes_dir, product)[-1] if version is None else _named(recipes_dir, product, version)
    return _load_own(recipes_dir / product / found, product)


def rollback(recipes_dir: Path, product: str) -> Recipe:
    """Make the version active that was active before; repeated, it goes further back.

    A blind one too, for it ran before and a line that stands can't wait: the caller warns of its blindness,
    and the history says "anyway". Raises RecipeError where there is none, or where it does not verify.
    """
    known = versions(recipes_dir, product)
    with _locked(recipes_dir / product):
        now = active_version(recipes_dir, product)
        earlier = [item for item in _stack(recipes_dir / product) if item != now and item in known]
        if not earlier:
            raise RecipeError(
                f"no version of {product} was active before {now or 'now'}; "
                f"choose one with `calibrate activate {product} VERSION` (it has {', '.join(known)})"
            )
        recipe = _load_own(recipes_dir / product / earlier[-1], product)
        blind = recipe.is_blind
        _point_active(recipes_dir / product, earlier[-1])
        _record(recipes_dir / product, "rollback", earlier[-1], blind)
    return recipe


def resolve(recipes_dir: Path, name: str) -> Recipe:
    """A recipe by folder, by PRODUCT (its active version) or by PRODUCT/VERSION; verified."""
    if (Path(name) / "recipe.toml").is_file():
        return load_recipe(Path(name))
    product, _, version = name.partition("/")
    if "/" in version or not PRODUCT.fullmatch(product):
        raise RecipeError(f"no recipe folder {name}, and no PRODUCT or PRODUCT/VERSION; see `calibrate list`")
    if version:
        return load_recipe(recipes_dir / product / _named(recipes_dir, product, version))
    versions(recipes_dir, product)  # tells where there is none at all
    return active_recipe(recipes_dir, product)


def _named(recipes_dir: Path, product: str, version: str) -> str:
    """A version by what a person calls it, 2 or 0002. Raises RecipeError where there is none."""
    known = versions(recipes_dir, product)
    for name in known:
        if version.isdecimal() and int(name) == int(version):
            return name
    raise RecipeError(f"{product} has no version {version!r}; it has {', '.join(known)}")


def _load_own(path: Path, product: str) -> Recipe:
    recipe = load_recipe(path)
    if recipe.spec.product != product:
        raise RecipeError(f"{path} is a recipe of {recipe.spec.product!r}, not of {product!r}; move it there")
    return recipe


def _product_dir(recipes_dir: Path, product: str) -> Path:
    if not PRODUCT.fullmatch(product):
        raise RecipeError(f"{product!r} is no product name; use up to 40 letters, digits, - and _")
    return recipes_dir / product


def _version_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = [item.name for item in folder.iterdir() if VERSION.fullmatch(item.name) and item.is_dir()]
    return sorted(names, key=int)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"can't write {folder}: {error.strerror}; give a folder with --recipes") from error
    return folder


def _hold(folder: Path) -> int:
    """A lock on a folder that ends with this process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = _hold(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove staging folders that no living process holds."""
    for item in folder.iterdir():
        if not STAGING.fullmatch(item.name):
            continue
        try:
            descriptor = os.open(item, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # its fit has just ended
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(item, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _point_active(folder: Path, version: str) -> None:
    fresh = folder / ".active.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(version)
    os.replace(fresh, folder / "active")
    _sync(folder)


def _record(folder: Path, what: str, version: str, blind: bool) -> None:
    """A line of the history, for rollback and for whoever asks how a blind version came to run."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(f"{stamp} {what} {version}{ANYWAY if blind else ''}\n")
        file.flush()
        os.fsync(file.fileno())


def _stack(folder: Path) -> list[str]:
    """Versions that a rollback can go to, latest last: activations, less those rolled back from."""
    stack: list[str] = []
    path = folder / HISTORY
    for what, version in EVENT.findall(path.read_text(encoding="utf-8") if path.is_file() else ""):
        if what == "rollback":
            while stack and stack[-1] != version:
                stack.pop()
        elif not stack or stack[-1] != version:
            stack.append(version)
    return stack


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for item in sorted(folder.rglob("*"), reverse=True):
        _sync(item)
    _sync(folder)
