"""From a recipe on disk to an inspector that has proven itself on this box."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np
import structlog

from inspectord.errors import RecipeError
from inspectord.frame import Pixels
from inspectord.inspect import Inspector, check_golden
from inspectord.recipe import Recipe, active_recipe
from inspectord.settings import Camera, Settings

WARM_UPS = 3  # the first runs allocate and pick kernels
log = structlog.get_logger()


def threads_of(settings: Settings) -> int:
    """Inference threads per camera: as set, or this process's cores shared between the cameras."""
    return settings.inference.threads or max(1, len(os.sched_getaffinity(0)) // len(settings.cameras))


def recipe_of(camera: Camera, settings: Settings) -> Recipe:
    """The camera's active recipe, verified. Raises RecipeError with the next step."""
    return active_recipe(settings.recipes_dir, camera.recipe)


def prepare(recipe: Recipe, settings: Settings, slots: Sequence[Pixels] = ()) -> Inspector:
    """Compile, warm up, repeat the golden scores, and bind to the ring's slots.

    Raises RecipeError where the graph can't run here, ParityError where it scores otherwise than when fitted.
    """
    began_s = time.monotonic()
    inference = settings.inference
    inspector = Inspector(recipe, inference.device, threads_of(settings), inference.cache_dir)
    blank = np.zeros(recipe.spec.frame.shape, np.uint8)
    try:
        for _ in range(WARM_UPS):
            inspector.score(blank)
    except RuntimeError as error:
        raise RecipeError(
            f"recipe {recipe.id} does not run on {inspector.device}: {str(error).strip().splitlines()[-1]}; "
            "fit again on this box"
        ) from error
    worst = check_golden(inspector)
    inspector.bind(slots)
    if recipe.is_blind:
        log.warning("this recipe passes even its marked golden frame: it finds no defects", recipe=recipe.id)
    took_s = round(time.monotonic() - began_s, 2)
    log.info("recipe ready", recipe=recipe.id, hash=recipe.hash[:12], golden_difference=worst, took_s=took_s)
    return inspector
