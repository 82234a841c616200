"""EfficientAD's anomaly map, in torch while it is trained and in the recipe's graph: section 3 of the paper.

One departure: the paper's normalised maps, 0 at one quantile of good frames and 0.1 at another, are shifted
by a constant so that no error is 0, and told in multiples of what held-out good tiles have on average. Parts
keep their order, and maps can be compared with what is usual, and between tiles of different networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from torch import Tensor, nn
from torch.nn import functional

from calibrate.efficientad import lite, networks
from calibrate.efficientad.teachers import PDN, Teacher
from calibrate.efficientad.translate import in_halves, numbers, translated
from inspectord.errors import FitError

QUANTILES = (0.9, 0.995)  # of the errors of good frames; section 3.4
SPAN = 0.1  # what lies between the two counts so much


class Trained(nn.Module):
    """What training leaves behind: two networks and the scales of what they are compared by."""

    def __init__(self, student: nn.Sequential, autoencoder: nn.Sequential, channels: int) -> None:
        super().__init__()
        self.student, self.autoencoder = student, autoencoder
        self.register_buffer("mean", torch.zeros(channels, 1, 1))  # of the teacher's features
        self.register_buffer("spread", torch.ones(channels, 1, 1))
        # Of the student's error against the teacher, and of the autoencoder's against the student.
        self.register_buffer("quantiles", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.register_buffer("usual", torch.tensor(1.0))  # of the combined map of good tiles, the mean


@dataclass
class Detector:
    """Teacher, student and autoencoder; border is the cells on each side of a tile that have no feature."""

    teacher: Teacher
    trained: Trained
    border: int

    def features(self, images: Tensor) -> Tensor:
        """The teacher's, normalised by channel; (n, channels, rows, columns)."""
        with torch.no_grad():
            return (self.teacher(images) - self.trained.mean) / self.trained.spread

    def errors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of the student against the teacher and of the autoencoder against the student, both
        (n, rows, columns): the mean square over channels.
        """
        by_teacher, by_autoencoder = self.trained.student(images).chunk(2, 1)
        local = (self.features(images) - by_teacher).square().mean(1)
        return local, (self.trained.autoencoder(images) - by_autoencoder).square().mean(1)

    def misses(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of student and autoencoder, both against the teacher, whom both learn from; shapes as errors().
        Against the student, an autoencoder that has learned nothing has next to no error.
        """
        taught, (by_teacher, _) = self.features(images), self.trained.student(images).chunk(2, 1)
        told = self.trained.autoencoder(images)
        return (taught - by_teacher).square().mean(1), (taught - told).square().mean(1)

    def combined(self, images: Tensor) -> Tensor:
        """The combined map of whole tiles, (n, cells down, cells across); the border repeats what is next."""
        with torch.no_grad():
            local, whole = self.errors(images)
            first, second = self.weights.tolist()
            return functional.pad(first * local + second * whole, [self.border] * 4, mode="replicate")

    @property
    def weights(self) -> Tensor:
        """What each error counts in the combined map: half of SPAN over what lies between its quantiles, over
        what is usual. A tile that never varies has no errors: there the smallest one counts.
        """
        low, high = self.trained.quantiles.unbind(1)
        return 0.5 * SPAN / (high - low).clamp(min=1e-6) / self.trained.usual.clamp(min=1e-3)

    def build(self, images: ov.Output, taught: ov.Output | None = None) -> ov.Output:
        """combined, in the recipe's graph: (n, 1, cells down, cells across).

        taught is what the teacher says of the images, where it has been asked already.
        """
        if taught is None:
            taught = self.teacher.build(images)
        mean, spread = (numbers(part[None]) for part in (self.trained.mean, self.trained.spread))
        centred = op.subtract(taught, op.constant(mean))
        teacher = op.multiply(centred, op.constant(1 / spread)).output(0)
        by_teacher, by_autoencoder = in_halves(self.trained.student, images)
        autoencoder = translated(self.trained.autoencoder, images)
        first, second = (np.float32(weight) for weight in self.weights.tolist())
        total = op.add(
            op.multiply(_mean_square(teacher, by_teacher), op.constant(first)),
            op.multiply(_mean_square(autoencoder, by_autoencoder), op.constant(second)),
        )
        ends = op.constant([0, 0, self.border, self.border])
        return op.pad(total, ends, ends, "edge").output(0)


def _mean_square(a: ov.Output, b: ov.Output) -> ov.Output:
    return op.reduce_mean(op.squared_difference(a, b), op.constant([1]), True).output(0)


def new_detector(kind: str, teacher: Teacher, height: int, width: int, seed: int) -> Detector:
    """An untrained detector of tiles of this size. Raises FitError where they are too small for it."""
    family: dict[str, Callable[[int], nn.Sequential]] = {**PDN, "efficientad-lite": lite.student}
    part = lite if kind == "efficientad-lite" else networks
    if min(height, width) < part.SMALLEST:
        raise FitError(
            f"tiles of {width}x{height} pixels are too small for {kind}, which sees a patch of "
            f"{'32x32' if part is lite else '33x33'} at a time: at least {part.SMALLEST} on each side; "
            "give a larger --tile, --resize or --roi, or take --model padim"
        )
    torch.manual_seed(seed)
    student = family[kind](2 * teacher.channels)
    autoencoder = part.autoencoder(height, width, teacher.channels)
    border = 0 if part is lite else networks.BORDER
    return Detector(teacher, Trained(student, autoencoder, teacher.channels).eval(), border)
