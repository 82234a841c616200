"""One camera's lane: its process, its ring and its station, and what the daemon does with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog

from inspectord.camera import CameraEvent, CameraProcess
from inspectord.errors import InspectordError, RecipeError
from inspectord.examine import Examiner
from inspectord.health import Health
from inspectord.inspect import Inspector
from inspectord.last_good import remember
from inspectord.prepare import prepare, recipe_of, revive
from inspectord.recipe import Recipe
from inspectord.ring import Ring
from inspectord.settings import Camera, Settings
from inspectord.station import Outlets, Station

DRAIN_S = 2.0  # at shutdown, for the frames in the ring; what is left then becomes NOT_INSPECTED
log = structlog.get_logger()


class Lane:
    """Made of an inspector that has proven itself; close() leaves no process and no memory behind."""

    def __init__(
        self,
        camera: Camera,
        settings: Settings,
        inspector: Inspector,
        health: Health,
        rolled_back: str | None = None,
    ) -> None:
        self.name = camera.name
        self.reload_error: str | None = None
        self._rolled_back = rolled_back  # why it is not the active recipe that runs
        self._camera, self._settings, self._health = camera, settings, health
        self._ring = Ring.create(camera.ring_slots, inspector.recipe.spec.frame.shape)
        self._slots = [self._ring.slot(index) for index in range(camera.ring_slots)]
        inspector.bind(self._slots)
        self._examiner = Examiner(inspector, self._ring.release, self._remake, health)
        self._process = CameraProcess(camera.name, camera.source, self._ring)
        self._station: Station | None = None
        remember(camera.name, inspector.recipe, settings.state_dir)

    @property
    def state(self) -> str:
        return self._process.state

    @property
    def ended(self) -> bool:
        return self._process.state == "ended"

    @property
    def inspects(self) -> bool:
        """False where no part of this camera can be inspected at present, or none of the last ones was."""
        blind = self._station is not None and self._station.blind
        return self._process.state in ("running", "armed") and self._examiner.trouble is None and not blind

    @property
    def idle(self) -> bool:
        """No part waits for its verdict."""
        return not self._examiner.busy and self._ring.is_empty

    @property
    def troubles(self) -> list[str]:
        """Why this lane needs a person, in words; empty where it is well."""
        found = [self._camera_trouble(), self._examiner.trouble, self._rolled_back]
        wanted = self._settings.inference.device or self._examiner.recipe.spec.runtime.device
        if self._examiner.device not in (None, wanted):
            found.append(f"{wanted} is lost, the model runs on {self._examiner.device}")
        if self._station is not None:
            found.append(self._station.uninspected)
        if self.reload_error is not None:
            found.append(f"reload refused: {self.reload_error}")
        return [f"camera {self.name}: {each}" for each in found if each]

    @property
    def frame_px(self) -> int:
        height, width, _ = self._ring.frame_shape
        return height * width

    @property
    def camera_age_s(self) -> float:
        return self._process.age_s

    @property
    def totals(self) -> dict[str, int]:
        return self._station.totals if self._station is not None else {}

    def start(self, station: str, boot_id: str, outlets: Outlets) -> None:
        self._station = Station(self._camera, (station, boot_id), self._ring, self._examiner, outlets)
        self._station.start(self._health)
        self._process.start()

    def poll(self) -> None:
        """Hear from the camera."""
        for event in self._process.poll():
            self._tell(event)

    def ask_to_stop(self) -> None:
        """Before stop(), so that all cameras end at the same time."""
        self._process.ask_to_end()

    def stop(self) -> None:
        """No more frames; those in the ring get their verdicts."""
        self._process.stop()
        if self._station is not None:
            self._station.finish(DRAIN_S + self._camera.deadline_ms / 1000)

    def close(self) -> None:
        self._process.stop()
        self._ring.close()

    def reload(self) -> None:
        """Change to the active recipe between two frames; a broken one is refused and the old runs on."""
        try:
            recipe = recipe_of(self._camera, self._settings)
            if recipe.hash == self._examiner.recipe.hash:
                log.info("recipe unchanged", camera=self.name, recipe=recipe.id)
            else:
                self._swap(recipe)
            self.reload_error = self._rolled_back = None
        except Exception as error:
            self.reload_error = str(error)
            log.error(
                "reload refused, the old recipe runs on",
                camera=self.name,
                recipe=self._examiner.recipe.id,
                error=str(error),
                exc_info=not isinstance(error, InspectordError),
            )

    def _swap(self, recipe: Recipe) -> None:
        shape, old = recipe.spec.frame.shape, self._examiner.recipe
        if shape != self._ring.frame_shape:
            raise RecipeError(
                f"recipe {recipe.id} needs frames {shape}, camera {self.name} runs with "
                f"{self._ring.frame_shape}; restart the daemon to change the frame size"
            )
        with self._health.load():
            inspector = prepare(recipe, self._settings, self._slots)
        if not self._examiner.swap(inspector):
            raise RecipeError(f"recipe {recipe.id} was not taken over in time; reload again")
        remember(self.name, recipe, self._settings.state_dir)
        log.info("recipe changed", camera=self.name, old=old.id, new=recipe.id, hash=recipe.hash[:12])

    def _remake(self, recipe: Recipe) -> Inspector:
        with self._health.load():
            return revive(recipe, self._settings, self._slots)

    def _camera_trouble(self) -> str | None:
        if self._process.state not in ("starting", "lost"):
            return None
        return f"{self._process.state}: {self._process.last_error or 'no frame yet'}"

    def _tell(self, event: CameraEvent) -> None:
        level = {"info": log.info, "warning": log.warning, "error": log.error}[event.level]
        what = event.text if event.kind == "log" else f"camera {event.kind}"
        level(what, camera=self.name, **({"reason": event.text} if event.kind == "lost" else {}))

    def describe(self) -> dict[str, Any]:
        process = self._process
        return {
            "state": process.state,
            "age_ms": round(process.age_s * 1000),
            "device": self._examiner.device,
            "pid": process.pid,
            "restarts": process.restarts,
            "last_error": process.last_error or None,
            "frames": process.counters["frames"],
            "displaced": process.counters["displaced"],
            "reload_error": self.reload_error,
            **(self._station.describe() if self._station is not None else {}),
        }


def wait_for_frames(lanes: list[Lane], limit_s: float, stopped: Callable[[], bool]) -> None:
    """Until every camera runs, is armed, lost or ended, or limit_s is over."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s and not stopped():
        for lane in lanes:
            lane.poll()
        if all(lane.state != "starting" for lane in lanes):
            return
        time.sleep(0.02)
