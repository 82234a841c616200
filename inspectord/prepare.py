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
from inspectord.signature import TrustedKey

WARM_UPS = 3  # the first runs allocate and pick kernels
log = structlog.get_logger()


def threads_of(settings: Settings) -> int:
    """Inference threads per camera: as set, or this process's cores shared between the cameras."""
    return settings.inference.threads or max(1, len(os.sched_getaffinity(0)) // len(settings.cameras))


def recipe_of(camera: Camera, settings: Settings) -> Recipe:
    """The camera's active recipe, verified. Raises RecipeError with the next step."""
    return active_recipe(settings.recipes_dir, camera.recipe, trusted_key(settings))


def trusted_key(settings: Settings) -> TrustedKey | None:
    """The key that recipes must be signed with, if any. Raises SettingsError where it can't be used."""
    path = settings.security.trusted_key
    return None if path is None else TrustedKey(path)


def prepare(
    recipe: Recipe, settings: Settings, slots: Sequence[Pixels] = (), device: str | None = None
) -> Inspector:
    """Compile, warm up, repeat the golden scores, and bind to the ring's slots.

    device: instead of the settings' one. Raises RecipeError where the graph can't run here, ParityError where
    it scores otherwise than when fitted.
    """
    began_s = time.monotonic()
    recipe = recipe.verified_again()
    inference = settings.inference
    inspector = Inspector(recipe, device or inference.device, threads_of(settings), inference.cache_dir)
    blank = np.zeros(recipe.spec.frame.shape, np.uint8)
    try:
        for _ in range(WARM_UPS):
            inspector.score(blank)
        worst = check_golden(inspector)
    except RuntimeError as error:
        raise RecipeError(
            f"recipe {recipe.id} does not run on {inspector.device}: {str(error).strip().splitlines()[-1]}; "
            "fit again on this box"
        ) from error
    inspector.bind(slots)
    if blindness := recipe.blindness:
        log.warning("this recipe is blind", recipe=recipe.id, why=blindness)
    recipe.check_untouched()
    took_s = round(time.monotonic() - began_s, 2)
    log.info("recipe ready", recipe=recipe.id, hash=recipe.hash[:12], golden_difference=worst, took_s=took_s)
    return inspector


def revive(recipe: Recipe, settings: Settings, slots: Sequence[Pixels]) -> Inspector:
    """After a failure: the configured device again, else the one that the limits were calibrated with.

    Never any other: its scores would meet limits that are not theirs. Raises RecipeError.
    """
    configured, calibrated = settings.inference.device, recipe.spec.runtime.device
    try:
        return prepare(recipe, settings, slots)
    except (RecipeError, RuntimeError) as error:
        if configured in (None, calibrated):
            raise
        log.error("falling back", recipe=recipe.id, lost=configured, device=calibrated, error=str(error))
        return prepare(recipe, settings, slots, calibrated)
