"""Which recipe last proved itself for each camera, so that a start can fall back on it.

Kept in state_dir/last_good.json: {camera: {"path": ..., "hash": ...}}.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import structlog

from inspectord.errors import RecipeError
from inspectord.inspect import Inspector
from inspectord.prepare import prepare, recipe_of, trusted_key
from inspectord.recipe import Recipe, load_recipe
from inspectord.settings import Camera, Settings

NAME = "last_good.json"
log = structlog.get_logger()


def start_with(camera: Camera, settings: Settings) -> tuple[Inspector, str | None]:
    """The camera's active recipe, proven; or the last good one, and why, where the settings allow it.

    Raises RecipeError where neither can run.
    """
    try:
        return prepare(recipe_of(camera, settings), settings), None
    except RecipeError as error:
        if settings.on_broken_recipe == "refuse":
            raise
        inspector = prepare(_recall(camera, settings, error), settings)
        why = f"the active recipe is refused and {inspector.recipe.id} runs instead: {error}"
        log.error("rolled back", camera=camera.name, recipe=inspector.recipe.id, error=str(error))
        return inspector, why


def remember(camera: str, recipe: Recipe, state_dir: Path) -> None:
    """After a recipe has proven itself. A disk that can't take it is logged: the line goes on."""
    path = state_dir / NAME
    table = _read(path) | {camera: {"path": str(recipe.path), "hash": recipe.hash}}
    unfinished = path.with_suffix(".tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(table, file, indent=2)
            file.flush()
            os.fsync(file.fileno())  # a power cut after the rename must not leave an empty file
        unfinished.replace(path)
    except OSError as error:
        log.error("the last good recipe is not remembered", path=str(path), error=str(error))


def _recall(camera: Camera, settings: Settings, error: RecipeError) -> Recipe:
    found = _read(settings.state_dir / NAME).get(camera.name)
    if not isinstance(found, dict) or not {"path", "hash"} <= found.keys():
        raise RecipeError(f"{error}; and no earlier recipe has run here to fall back on") from error
    recipe = load_recipe(Path(str(found["path"])), trusted_key(settings))
    if recipe.spec.product != camera.recipe:
        raise RecipeError(
            f"{error}; and what last ran here is {recipe.id}, another product than {camera.recipe}"
        ) from error
    if recipe.hash != found["hash"]:
        raise RecipeError(f"{error}; and {recipe.id} is no longer the recipe that ran here") from error
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
