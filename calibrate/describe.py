"""What a recipe says of itself: recipe.toml, which is hashed, and where it comes from, which is not."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from calibrate.limits import Limit
from inspectord import __version__
from inspectord.recipe import SCHEMA, file_hash

if TYPE_CHECKING:
    from calibrate.fit import Plan

GOLDEN_TOLERANCE = 1e-4  # relative, between starts on one box


def recipe_table(
    plan: Plan, parameters: dict[str, Any], limit: Limit, golden: int, staging: Path
) -> dict[str, Any]:
    """recipe.toml; holds no time, host or path, so the same frames always give the same hash.

    parameters are those of the model kind and of its levels.
    """
    options, geometry = plan.options, plan.geometry
    files = sorted(path for path in staging.rglob("*") if path.is_file())
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
                "absolute": options.absolute,
                "smoothing_px": options.smoothing_px,
                "good_frames": plan.good.digest,
            },
        },
        "runtime": {
            "device": options.device,
            "precision": options.precision,
            "openvino": ov.__version__,
        },
        "limits": limit.for_recipe(_folds(plan)).model_dump(),
        "golden": {"frames": golden, "tolerance": GOLDEN_TOLERANCE},
        "files": {str(path.relative_to(staging)): file_hash(path) for path in files},
    }


def _folds(plan: Plan) -> str:
    if plan.options.folds == "run":
        return "one run at a time"
    return "leave-one-out" if plan.folds.leave_one_out else f"{len(np.unique(plan.folds.of_frame))} folds"


def provenance(plan: Plan) -> dict[str, str]:
    """Where and from what; for people, outside the recipe's hash."""
    return {
        "fitted": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "command": " ".join(sys.argv),
        "folders": ", ".join(str(folder) for folder in plan.options.folders),
        "good images": str(len(plan.good)),
        "exact duplicates left out": str(plan.good.duplicates),
        "unreadable images skipped": str(len(plan.good.skipped)),
        "inspectord": __version__,
        "openvino": ov.__version__,
        "python": platform.python_version(),
    }
