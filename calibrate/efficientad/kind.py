"""The kinds efficientad-s, -m and -lite: a network is trained, then compiled as any other.

One network is trained, on all good frames but the held-out ones: these say when to stop, what errors are
usual, and what the limit is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from calibrate.efficientad.agreement import DisagreeError, check_agreement
from calibrate.efficientad.backbone import Identity, Network, device_of, network_of, tile_shape
from calibrate.efficientad.detector import Detector
from calibrate.efficientad.foresee import Noise, check_accelerator, host_mb
from calibrate.efficientad.inputs import Tiles
from calibrate.efficientad.per_tile import apart_mb, one_thread, train_apart
from calibrate.efficientad.place import Place, place_of
from calibrate.efficientad.settings import Settings, settings_of
from calibrate.efficientad.teachers import open_teacher
from calibrate.efficientad.train import Training
from calibrate.folds import Indices
from calibrate.graph import Reduction
from calibrate.kinds import Cost, Kind, Learned, check_memory
from calibrate.options import FitOptions, duration
from calibrate.progress import Progress
from calibrate.spool import Scratch, Spool
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan

HELD_OUT = "1/5"  # of the good frames
FOR_CHECKS = 1.1  # times what the steps of a training take
BESIDES_S = 10  # before and after it
DIRECTLY = (
    "large convolutions are computed directly, which takes longer: in fewer multiplications they would round "
    "by too much of what this network tells"
)


class EfficientAD(Kind):
    """One of the three."""

    locally_aware = False
    relights = False
    precisions: tuple[str, ...] = ("f32", "bf16", "f16")
    fewest = 1  # folds ask for more, and say why

    def __init__(self, name: str) -> None:
        self.name = name

    def backbone(self, options: FitOptions) -> Network:
        if options.threads:
            torch.set_num_threads(options.threads)
        # Alike on every box that trains a tile.
        threads = 1 if options.per_tile else options.threads
        teacher = open_teacher(self.name, options.weights, threads)
        return Network(self.name, teacher, options.seed)

    def folds(self, how: str, frames: int) -> str:
        """One frame in so many is held out, all by one training."""
        if how == "run":
            raise FitError(
                f"--folds run would take one training for each run, and {self.name} takes long for one; "
                "give a number: one frame in so many is held out"
            )
        return HELD_OUT if how == "loo" else f"1/{how}"

    def reduction(self, channels: tuple[int, ...], positions: int, options: FitOptions) -> Reduction:
        return Reduction((np.arange(1),))

    def apart(self, options: FitOptions) -> bool:
        return options.per_tile

    def needs(self, plan: Plan) -> Indices:
        return np.union1d(np.flatnonzero(plan.folds.measured), plan.checked)

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Raises FitError where training would not fit into memory."""
        network, options, settings = network_of(plan), plan.options, settings_of(plan.options)
        shape = tile_shape(plan)
        detector = network.untrained(*shape[1:])
        check_accelerator(plan, detector, shape)
        memory = peak_mb + host_mb(plan, detector, shape) + apart_mb(plan, detector, shape)
        check_memory(
            f"training on tiles of {shape[2]}x{shape[1]} pixels",
            memory,
            options.memory_mb,
            "or a smaller --tile or --resize" + (", or fewer --jobs" if options.jobs > 1 else ""),
        )
        each_s, networks = self._training_s(plan, detector), plan.geometry.tiles if options.per_tile else 1
        training_s = each_s * math.ceil(networks / min(options.jobs, networks))
        weights = networks * sum(value.numel() for value in detector.trained.state_dict().values())
        return Cost(
            recipe_mb=4 * weights / 1e6,
            disk_mb=4 * plan.samples * plan.geometry.tiles * math.prod(shape) / 1e6 + 16 * weights / 1e6,
            memory_mb=memory,
            seconds=training_s + BESIDES_S,
            about=(f"trains networks for each of {networks} tiles, each " if networks > 1 else "trains ")
            + f"on {int((plan.folds.of_frame == 0).sum())} frames for {settings.words}"
            + (", however busy this box is" if settings.steps is None else f", about {duration(each_s)}")
            + f"; {int(plan.folds.measured.sum())} frames are held out. Cutting the tiles comes before that, "
            "the limit after it",
        )

    def _training_s(self, plan: Plan, detector: Detector) -> float:
        """Of one training: the minutes asked for, or its steps as this box does them now."""
        settings = settings_of(plan.options)
        if settings.steps is None:
            return 60 * (settings.minutes or 0.0)
        one = np.zeros(1, np.int64)
        with one_thread() if plan.options.per_tile else nullcontext():
            timed = Training(detector, Noise(tile_shape(plan)), one, one, settings, device_of(plan))
            return settings.steps * timed.seconds_a_step() * FOR_CHECKS

    @contextmanager
    def trained(self, plan: Plan, progress: Progress) -> Iterator[Plan]:
        """The plan with the trained network in its graph. Raises FitError where training fails, or where the
        compiled graph and the network as it was trained disagree.
        """
        network, settings = network_of(plan), settings_of(plan.options)
        with ExitStack() as held:
            with Scratch() as folder:
                everything = progress.track(range(plan.samples), "cutting tiles")
                tiles = Tiles(plan, (plan.sample(number) for number in everything), folder)
                place = held.enter_context(place_of(plan, settings, tiles.digest, network.digest))
                place.tell_of_others(progress)
                whole = (train_apart if plan.options.per_tile else _train)(plan, tiles, place, progress)
                tiles.close()
            parts = plan.frame, plan.geometry, whole, plan.reduction, plan.region.ignored
            plan = dataclasses.replace(plan, backbone=whole, graph=self.graph(*parts, plan.options))
            try:
                check_agreement(plan)
            except DisagreeError:
                if plan.hint == "f32":
                    raise
                # Of parts that the student knows well, its error is hardly more than what is rounded.
                progress.note(DIRECTLY)
                graph = self.graph(*parts, plan.options, quick=False)
                plan = dataclasses.replace(plan, graph=graph)
                check_agreement(plan)
            yield plan

    def learn(
        self,
        plan: Plan,
        embeddings: Iterable[Floats],
        folder: Path,
        progress: Progress,
    ) -> Learned:
        """The map is a distance already: nothing is left to fit."""
        away, checked = (
            Spool(folder, count, plan.positions, 1, plan.positions)
            for count in (int(plan.folds.measured.sum()), len(plan.checked))
        )
        place = {sample: number for number, sample in enumerate(np.flatnonzero(plan.folds.measured).tolist())}
        known = {sample: number for number, sample in enumerate(plan.checked.tolist())}
        for sample, found in zip(self.needs(plan).tolist(), embeddings, strict=True):
            if sample in place:
                away.write_frame(place[sample], found)
            if sample in known:
                checked.write_frame(known[sample], found)
        return Learned(Identity(), away, checked, network_of(plan).facts)

    def published(self, plan: Plan) -> None:
        place = network_of(plan).place
        if place is not None:
            place.remove()


def _train(plan: Plan, tiles: Tiles, place: Place, progress: Progress) -> Network:
    """Train, or go on where a killed training of the same was."""
    network, settings = network_of(plan), settings_of(plan.options)
    teaching, held_out = np.flatnonzero(plan.folds.of_frame == 0), np.flatnonzero(plan.folds.measured)
    training = Training(
        network.untrained(*tiles.shape[1:]),
        tiles,
        tiles.of(teaching),
        tiles.of(held_out),
        settings,
        device_of(plan),
    )
    training.begin(place.checkpoint, place.identity)
    _watched(training, settings, progress)
    training.finish()
    return network.finished(training, place)


def _watched(training: Training, settings: Settings, progress: Progress) -> None:
    """Train, counting what the budget is of: steps, or seconds."""
    done, course = training.step, training.course
    if done:
        progress.note(f"continuing after step {done} and {duration(course.spent_s)} of {settings.words}")
    watched: Iterator[object]
    if settings.steps is None:
        left = max(1, round(60 * (settings.minutes or 0.0) - course.spent_s))
        watched = progress.track(_seconds(training, left), "training, seconds", left)
    else:
        watched = progress.track(training.run(), "training, steps", settings.steps - done)
    for _ in watched:
        pass
    progress.note(
        f"trained for {training.step:,} steps in {duration(training.course.spent_s)}"
        + (
            f", and no longer: the error on held-out frames is lowest after step {training.course.best_step}"
            if training.course.stopped
            else ""
        )
    )


def _seconds(training: Training, left: int) -> Iterator[int]:
    """Train, and give every second that goes by, `left` in all at the most."""
    before, told = training.course.spent_s, 0
    for _ in training.run():
        until = min(left, int(training.course.spent_s - before))
        yield from range(told, until)
        told = max(told, until)
    if not training.course.stopped:
        yield from range(told, left)
