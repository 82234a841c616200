"""The gate between the network as torch has it and the graph that will run, on the device that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
import torch

from calibrate.efficientad.backbone import network_of
from calibrate.graph import tile_model
from calibrate.publish import PARITY_16_BIT, PARITY_F32
from inspectord.errors import FitError
from inspectord.inspect import Floats, compile_model

if TYPE_CHECKING:
    from calibrate.plan import Plan

# Where the last bit of a sum differs, a value of lite's teacher rounds to another of 255 steps: 0.13 %.
PARITY_8_BIT = 0.01


class DisagreeError(FitError):
    """The compiled graph's maps are not the trained network's."""


def check_agreement(plan: Plan) -> None:
    """Compare the maps of the golden frames and the marked one; the plan's graph is the trained one's, before
    it is brought to 8 bits. Raises DisagreeError where they differ.
    """
    options = plan.options
    compiled = compile_model(plan.graph, options.device, plan.hint, options.threads).create_infer_request()
    cut = compile_model(
        tile_model(plan.frame, plan.geometry, plan.region.ignored), "CPU", "f32", options.threads
    ).create_infer_request()
    exact = plan.hint == "f32"
    tolerance = (
        (PARITY_8_BIT if plan.kind.name == "efficientad-lite" else PARITY_F32) if exact else PARITY_16_BIT
    )
    for sample in plan.checked.tolist():
        frame = plan.sample(sample)[None]
        compiled.infer([frame])
        known, found = _map(plan, cut, frame), compiled.get_output_tensor(0).data.ravel()
        worst = float(np.abs(found - known).max() / max(float(known.max()), 1e-12))
        if not worst <= tolerance:
            step = "report this with the frames" if exact else "use --precision f32"
            raise DisagreeError(
                f"the compiled network's map differs from the trained one's by {worst:.2%}; the recipe was "
                f"not published: {step}"
            )


def _map(plan: Plan, cut: ov.InferRequest, frame: np.ndarray) -> Floats:
    """The combined maps of a frame's tiles by torch, (positions,)."""
    cut.infer([frame])
    tiles, detectors = torch.from_numpy(cut.get_output_tensor(0).data), network_of(plan).detectors
    each = detectors * (len(tiles) // len(detectors))
    maps = [detector.combined(tile[None]) for detector, tile in zip(each, tiles, strict=True)]
    whole: Floats = torch.cat(maps).numpy().ravel()
    return whole
