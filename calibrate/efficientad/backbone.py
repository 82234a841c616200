"""The whole detector as a backbone of the recipe's graph, whose only channel is its combined map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op

from calibrate.backbones import Chosen
from calibrate.efficientad.detector import Detector, new_detector
from calibrate.efficientad.place import Place
from calibrate.efficientad.teachers import Teacher
from calibrate.efficientad.train import Training
from calibrate.pieces import in_blocks
from inspectord.errors import FitError

if TYPE_CHECKING:
    from calibrate.plan import Plan

LOOPED = 4  # tiles from which on a patch description network takes one at a time, for its memory's sake


class Network:
    """A teacher, and what was trained with it."""

    def __init__(
        self,
        kind: str,
        teacher: Teacher,
        seed: int,
        detectors: tuple[Detector, ...] = (),
        facts: dict[str, Any] | None = None,
        place: Place | None = None,
    ) -> None:
        """One detector for all tiles, or one for each; else an untrained one for tiles of any size."""
        self.teacher, self.detectors, self.facts, self.place = teacher, detectors, facts or {}, place
        self.name, self.digest = teacher.name, teacher.digest
        self.layers: tuple[str, ...] = (teacher.layer,)
        self._kind, self._seed = kind, seed

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        if len(self.detectors) > 1:
            return [built_apart(self.detectors, images)]
        count, *shape = images.get_shape()
        detector = self.detectors[0] if self.detectors else self.untrained(*shape[1:])
        if count < LOOPED or detector.border == 0:
            return [detector.build(images)]
        tile = op.parameter([1, *shape], ov.Type.f32)
        return [in_blocks([(tile, images)], detector.build(tile.output(0)), 1)]

    def untrained(self, height: int, width: int) -> Detector:
        return new_detector(self._kind, self.teacher, height, width, self._seed)

    def finished(self, training: Training, place: Place) -> Network:
        """With what one training found, on the CPU."""
        trained, course = training.trained.cpu().eval(), training.course
        detector = Detector(self.teacher.to(torch.device("cpu")), trained, training.detector.border)
        (low, high), (whole_low, whole_high) = trained.quantiles.tolist()
        facts = {
            "steps": training.step,
            "best_step": course.best_step,
            "held_out_error": course.best,
            "student_quantiles": f"{low:.6g} {high:.6g}",
            "autoencoder_quantiles": f"{whole_low:.6g} {whole_high:.6g}",
        }
        return self.trained((detector,), facts, place)

    def trained(self, detectors: tuple[Detector, ...], facts: dict[str, Any], place: Place) -> Network:
        """With these, and facts of their training for the recipe."""
        return Network(self._kind, self.teacher, self._seed, detectors, facts, place)


def built_apart(detectors: Sequence[Detector], images: ov.Output) -> ov.Output:
    """The combined maps of images (tiles, channels, height, width), each by its own detector."""
    count, *shape = images.get_shape()
    teacher = detectors[0].teacher
    if detectors[0].border:  # a patch description network; all tiles at once would take too much memory
        tile = op.parameter([1, *shape], ov.Type.f32)
        taught = in_blocks([(tile, images)], teacher.build(tile.output(0)), 1)
    else:
        taught = teacher.build(images)
    each, features = (
        op.split(whole, op.constant(np.int64(0)), count).outputs() for whole in (images, taught)
    )
    maps = [
        detector.build(image, known) for detector, image, known in zip(detectors, each, features, strict=True)
    ]
    return op.concat(maps, 0).output(0)


class Identity:
    """The head of a graph whose features are distances already."""

    def build(self, embeddings: ov.Output) -> ov.Output:
        return op.reshape(embeddings, op.constant([-1]), False).output(0)


def network_of(plan: Plan) -> Network:
    assert isinstance(plan.backbone, Network)
    return plan.backbone


def device_of(plan: Plan) -> torch.device:
    device = plan.options.train_device
    if device == "cuda" and not torch.cuda.is_available():
        raise FitError("torch finds no CUDA device; leave --train-device out, or install torch with CUDA")
    return torch.device(device)


def tile_shape(plan: Plan) -> list[int]:
    return [plan.frame.channels, plan.geometry.rows.tile, plan.geometry.columns.tile]
