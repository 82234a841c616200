"""What a recipe says of itself: recipe.toml, which is hashed, and where it comes from, which is not."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from calibrate import ensemble
from calibrate.images import digest_of
from calibrate.learned import LEARNED
from calibrate.limits import Limit
from calibrate.options import ADAPTED
from inspectord import __version__
from inspectord.recipe import SCHEMA, file_hash

if TYPE_CHECKING:
    from calibrate.plan import Plan

GOLDEN_TOLERANCE = 1e-4  # relative, between starts on one box


def recipe_table(
    plan: Plan, parameters: dict[str, Any], limit: Limit, blind_tiles: tuple[int, ...], staging: Path
) -> dict[str, Any]:
    """recipe.toml; holds no time, host or path, so the same frames always give the same hash.

    parameters are those of the model kind and of its levels; blind_tiles as recipe_spec.GoldenSpec has them.
    """
    options, geometry = plan.options, plan.geometry
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path.parent.name != LEARNED)
    return {
        "schema_version": SCHEMA,
        "product": options.product,
        "frame": plan.frame.model_dump(),
        "region": {"roi": list(geometry.roi), "ignored_fraction": plan.region.ignored_fraction},
        "tiles": {
            "rows": len(geometry.rows.offsets),
            "columns": len(geometry.columns.offsets),
            "height": geometry.rows.tile,
            "width": geometry.columns.tile,
            "overlap": options.overlap,
            "scale": geometry.scale,
            "cell_px": geometry.cell / geometry.scale,
        },
        "model": {
            "kind": plan.kind.name,
            "backbone": plan.backbone.name,
            "backbone_hash": plan.backbone.digest,
            "layers": list(plan.backbone.layers),
            "parameters": {
                "dimensions": plan.reduction.dimensions,
                "reduction": options.reduction,
                "seed": options.seed,
                "augment": options.augment,
                **parameters,
                **({"surroundings": True} if plan.around else {}),
                **plan.told_of_light,
                "absolute": options.absolute,
                "smoothing_px": plan.smoothing_px,
                **ensemble.parameters(options),
                **(plan.loss.parameters() if plan.loss else {}),
                "good_frames": digest_of(plan.taught),
            },
        },
        "runtime": {
            "device": options.device,
            "precision": options.precision,
            **({"rest": plan.rest} if plan.rest else {}),
            "openvino": ov.__version__,
        },
        "limits": limit.for_recipe(_folds(plan)).model_dump(),
        "golden": {
            "frames": len(plan.checked),
            "tolerance": GOLDEN_TOLERANCE,
            **({"blind_tiles": list(blind_tiles)} if blind_tiles else {}),
        },
        "files": {str(path.relative_to(staging)): file_hash(path) for path in files},
    }


def _folds(plan: Plan) -> str:
    absent = len(plan.earlier.absent) if plan.earlier else 0
    return _folds_now(plan) + (f"; {absent} earlier frames only taught" if absent else "")


def _folds_now(plan: Plan) -> str:
    if plan.options.folds == "run":
        return "one run at a time"
    if plan.folds.trained_once:
        return (
            f"{len(plan.measured)} of {len(plan.good)} frames, which taught the network nothing but when to "
            "stop and which errors are usual"
        )
    if plan.folds.leave_one_out:
        return "leave-one-out"
    adapted = plan.kind.name in ADAPTED.values()
    learned = ", each judged by the network that learned on others" if adapted else ""
    return f"{len(np.unique(plan.folds.of_frame))} folds{learned}"


def _extended(plan: Plan) -> dict[str, str]:
    if plan.earlier is None:
        return {}
    return {
        "added to": f"{plan.options.product}/{plan.earlier.folder.parent.name}, which "
        f"{len(plan.earlier.frames)} frames had taught",
        "of these without their images, so not measured": str(len(plan.earlier.absent)),
    }


def _folders(plan: Plan) -> list[str]:
    """Those of all frames that ever taught it, as far as they are known, then those given now."""
    given = [str(folder) for folder in plan.options.folders]
    if plan.earlier is None:
        return given
    known = {str(Path(folder).absolute()) for folder in given}
    earlier = dict.fromkeys(frame.run for frame in plan.earlier.frames)
    return [*(run for run in earlier if run and run not in known), *given]


def provenance(plan: Plan) -> dict[str, str]:
    """Where and from what; for people, outside the recipe's hash."""
    return {
        "fitted": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "command": " ".join(sys.argv),
        "folders": ", ".join(_folders(plan)),
        "good images": str(len(plan.good)),
        "held out of them": str(len(plan.measured)),
        **_extended(plan),
        "exact duplicates left out": str(plan.good.duplicates),
        "unreadable images skipped": str(len(plan.good.skipped)),
        "inspectord": __version__,
        "openvino": ov.__version__,
        "python": platform.python_version(),
    }
