"""Where a training keeps its checkpoint: a folder beside the product's recipes, gone once it is published."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openvino as ov
import torch

from calibrate.efficientad.settings import Settings
from calibrate.pretrain.checkpoint import Identity
from calibrate.progress import Progress
from inspectord.errors import FitError

if TYPE_CHECKING:
    from calibrate.plan import Plan

SAVED = "checkpoint.pt"


def identity_of(plan: Plan, settings: Settings, tiles: str, teacher: str) -> Identity:
    """Everything in which two trainings may differ: what is learned, from whom, on which tiles, and how."""
    held_out = hashlib.sha256(plan.folds.of_frame.tobytes()).hexdigest()
    settings_ = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    return {
        "model": plan.kind.name,
        # Another sum's order, and a resumed training would end elsewhere.
        "threads": 1 if plan.options.per_tile else torch.get_num_threads(),
        "torch": str(torch.__version__),
        "openvino": ov.__version__,
        "teacher": teacher,
        "tiles": tiles,
        "held out": held_out,
        "device": plan.options.train_device,
        "checked by": "student, autoencoder",  # once by the student alone
        **settings_,
    }


def place_of(plan: Plan, settings: Settings, tiles: str, teacher: str) -> Place:
    """Where a plan's training, one or one a tile, lies; tiles and teacher are digests."""
    identity = identity_of(plan, settings, tiles, teacher)
    if plan.options.per_tile:
        identity = {**identity, "networks": plan.geometry.tiles}
    return Place(plan.options.recipes_dir, plan.options.product, identity)


class Place:
    """A training's own folder, named by what it is: another training never finds it. Held from before it
    begins until its recipe is stored, so that a second fit of the same neither resumes nor removes it.
    """

    def __init__(self, recipes_dir: Path, product: str, identity: Identity) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.identity = identity
        self.folder = recipes_dir / product / f".{identity['model']}-{digest[:8]}.training"
        self.checkpoint = self.folder / SAVED

    def __enter__(self) -> Place:
        """Raises FitError while another process trains the same, or publishes it."""
        while True:
            self._held = self._opened()
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._held)
                raise FitError(
                    f"another fit trains the same in {self.folder}, or publishes it; wait for it, or end it"
                ) from error
            if self._is_there():
                return self
            os.close(self._held)  # the other has published, and removed it, in this moment

    def _opened(self) -> int:
        try:
            while True:
                self.folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # removed in this moment
                    return os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise FitError(f"can't write {self.folder}: {error.strerror}; give another --recipes") from error

    def _is_there(self) -> bool:
        """The folder that is held is the one that has the name."""
        try:
            return os.path.samestat(os.fstat(self._held), self.folder.stat())
        except FileNotFoundError:
            return False

    def __exit__(self, *_: Any) -> None:
        """An empty folder goes: what trains on other boxes keeps nothing here."""
        if self._is_there():  # else it may be another fit's, made after this one's was removed
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        os.close(self._held)

    def tell_of_others(self, progress: Progress) -> None:
        """Folders of trainings on other frames or with other options."""
        found = self.folder.parent.glob(f".{self.identity['model']}-*.training")
        for path in sorted(path for path in found if path != self.folder):
            progress.note(f"{path} is of other frames or options; remove it where nobody needs it")

    def remove(self) -> None:
        """By who holds it."""
        shutil.rmtree(self.folder, ignore_errors=True)
