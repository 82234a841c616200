"""A student and an autoencoder for each tile's place: trainings that know nothing of each other.

The teacher is one: in the graph it sees all tiles, and each tile's own networks learn from and are compared
with what it says of that tile. Every tile's errors are normalised by its own held-out tiles.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibrate.efficientad.backbone import Network, device_of, network_of
from calibrate.efficientad.detector import Detector, new_detector
from calibrate.efficientad.foresee import LIBRARY_MB, host_mb
from calibrate.efficientad.inputs import Tiles
from calibrate.efficientad.place import Place
from calibrate.efficientad.settings import Settings, settings_of
from calibrate.efficientad.teachers import Teacher
from calibrate.efficientad.train import Training
from calibrate.folds import Indices
from calibrate.parallel import PROCESS_MB, Unit, together, workers
from calibrate.pretrain.checkpoint import Identity
from calibrate.progress import Progress
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan


@dataclass(frozen=True)
class Job:
    """A training of one tile's networks."""

    name: str  # for people
    kind: str
    teacher: Teacher
    settings: Settings
    teaching: Indices  # samples
    held_out: Indices
    device: torch.device
    identity: Identity
    saved: Path | None  # its checkpoint; None: on another box, where it begins anew


@dataclass(frozen=True)
class TrainedTile:
    state: dict[str, npt.NDArray[Any]]  # of detector.Trained
    steps: int
    best_step: int
    error: float  # on held-out tiles, as Course has it


class InMemory:
    """Tiles (samples, channels, height, width), float32."""

    def __init__(self, tiles: Floats) -> None:
        self._tiles, self.shape = tiles, list(tiles.shape[1:])

    def read(self, numbers: Indices) -> Tensor:
        return torch.from_numpy(self._tiles[numbers])


def train_tile(tiles: Floats, job: Job) -> TrainedTile:
    """Train, or go on where a killed training of the same was, in one thread. Raises FitError."""
    _, _, height, width = tiles.shape
    with one_thread(), tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        detector = new_detector(job.kind, job.teacher, height, width, job.settings.seed)
        training = Training(detector, InMemory(tiles), job.teaching, job.held_out, job.settings, job.device)
        path = job.saved or Path(folder) / "checkpoint.pt"
        try:
            training.begin(path, job.identity, passing=job.saved is None)
            for _ in training.run():
                pass
        except FitError as error:
            raise FitError(f"{job.name}: {error}") from error
        training.finish()
        state = {name: value.cpu().numpy() for name, value in training.trained.state_dict().items()}
        course = training.course
        return TrainedTile(state, training.step, course.best_step, course.best)


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch; sums come in another order with more, and each training is to be the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def detectors_of(
    found: Sequence[TrainedTile], kind: str, teacher: Teacher, height: int, width: int
) -> tuple[Detector, ...]:
    """What was trained, on the CPU, ready to be asked and built."""
    detectors = []
    for tile in found:
        detector = new_detector(kind, teacher, height, width, seed=0)
        detector.trained.load_state_dict({name: torch.from_numpy(part) for name, part in tile.state.items()})
        detectors.append(Detector(teacher, detector.trained.eval(), detector.border))
    return tuple(detectors)


def facts_of(found: Sequence[TrainedTile]) -> dict[str, Any]:
    """For recipe.toml."""
    errors = [tile.error for tile in found]
    return {
        "steps": max(tile.steps for tile in found),
        "best_step": max(tile.best_step for tile in found),
        "held_out_error": float(np.mean(errors)),
        "held_out_error_of_the_worst_tile": max(errors),
    }


def train_apart(plan: Plan, tiles: Tiles, place: Place, progress: Progress) -> Network:
    """As _train, for each tile by itself. A checkpoint lies here where the training does."""
    network, settings, count = network_of(plan), settings_of(plan.options), plan.geometry.tiles
    teaching, held_out = np.flatnonzero(plan.folds.of_frame == 0), np.flatnonzero(plan.folds.measured)

    def units() -> Iterator[Unit]:
        for number in range(count):
            saved = None if plan.options.on else place.folder / f"tile_{number:04}.pt"
            identity = {**place.identity, "tile": number}
            job = Job(
                f"tile {number + 1} of {count}",
                plan.kind.name,
                network.teacher,
                settings,
                teaching,
                held_out,
                device_of(plan),
                identity,
                saved,
            )
            yield tiles.read(np.arange(plan.samples) * count + number).numpy(), job

    with workers(plan.options) as by:
        found = list(progress.track(by.run(train_tile, units()), "training tiles", count))
    detectors = detectors_of(found, plan.kind.name, network.teacher, *tiles.shape[1:])
    return network.trained(detectors, facts_of(found), place)


def apart_mb(plan: Plan, detector: Detector, shape: list[int]) -> float:
    """Besides one training: the others that run beside it, each tile's images, and all that was trained."""
    options = plan.options
    if not options.per_tile:
        return 0.0
    here = 1 if options.on else options.jobs
    images = 4 * plan.samples * math.prod(shape) / 1e6
    weights = 4 * sum(value.numel() for value in detector.trained.state_dict().values()) / 1e6
    process = PROCESS_MB + LIBRARY_MB + host_mb(plan, detector, shape)
    more = (here - 1) * process + 2 * together(options) * images + 3 * plan.geometry.tiles * weights
    return float(more)
