"""The daemon's life: start up, run, reload, shut down. Nothing is inspected before every recipe is proven."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import structlog
import zmq

from inspectord import __version__, examine
from inspectord.errors import InspectordError
from inspectord.filelock import FileLock
from inspectord.health import Health, notify, spawn
from inspectord.images import Images
from inspectord.journal import Journal
from inspectord.lane import Lane, wait_for_frames
from inspectord.messages import HEARTBEAT_SCHEMA
from inspectord.prepare import prepare, recipe_of, threads_of
from inspectord.publish import Heart, Publisher
from inspectord.replay import Replay, Replayer
from inspectord.settings import Settings
from inspectord.station import Outlets

POLL_S = 0.05
STALE_S = 10.0  # a thread that has not beaten for so long is stuck: the watchdog is no longer fed
FIRST_FRAME_S = 10.0  # READY waits so long for cameras; one dead camera must not hold up the others
RELOAD_S = 15.0  # at shutdown, for a reload under way
log = structlog.get_logger()


class Signals:
    """SIGTERM and SIGINT ask to stop, SIGHUP to reload; handlers only set flags: all else is unsafe there."""

    def __init__(self) -> None:
        self.stop = self.reload = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def _on_stop(self, *_: Any) -> None:
        self.stop = True

    def _on_reload(self, *_: Any) -> None:
        self.reload = True


class Daemon:
    """Run once; everything opened is closed again, in reverse order, also after a failed start."""

    def __init__(self, settings: Settings) -> None:
        self.boot_id = uuid.uuid4().hex
        self._settings = settings
        self._state = "starting"
        self._began_s = time.monotonic()
        self._health = Health()
        self._signals = Signals()
        self._lanes: list[Lane] = []
        self._reloading = False
        self._reloader: threading.Thread | None = None
        self._fed_s = 0.0

    def run(self) -> None:
        """Until SIGTERM, SIGINT or the end of all sources. Raises InspectordError where it can't go on."""
        with ExitStack() as stack:
            self._start(stack)
            while not self._signals.stop and not all(lane.ended for lane in self._lanes):
                self._watch()
                time.sleep(POLL_S)
        log.info("stopped", boot_id=self.boot_id, **self._totals())

    def _start(self, stack: ExitStack) -> None:
        log.info("starting", version=__version__, boot_id=self.boot_id, station=self._settings.station)
        _tune_process()
        self._own_state_dir(stack)
        self._prove_recipes(stack)
        outlets = self._open_outlets(stack)
        stack.callback(self._finish)
        self._start_cameras(outlets)
        self._report_ready()

    def _own_state_dir(self, stack: ExitStack) -> None:
        state_dir = self._settings.state_dir
        taken = f"another inspectord uses state_dir {state_dir}; stop it or choose another"
        stack.callback(FileLock(state_dir / "lock", taken).close)

    def _prove_recipes(self, stack: ExitStack) -> None:
        log.info("loading recipes", threads=threads_of(self._settings))
        for camera in self._settings.cameras:
            recipe = recipe_of(camera, self._settings)
            inspector = prepare(recipe, self._settings)
            lane = Lane(camera, self._settings, inspector, self._health)
            stack.callback(lane.close)
            self._lanes.append(lane)
        # What lives now lives for ever: the collector need not look at it again, on the hot path.
        gc.collect()
        gc.freeze()

    def _open_outlets(self, stack: ExitStack) -> Outlets:
        settings, health = self._settings, self._health
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        names = [lane.name for lane in self._lanes]
        self._publisher = Publisher(context, settings.publish, names)
        stack.callback(self._publisher.close)
        journal_path = settings.state_dir / "journal.sqlite"
        self._journal = Journal(journal_path, settings.journal.quota_mb, health)
        stack.callback(self._journal.close)
        self._images = self._open_images(stack)
        replayer = Replayer(self.boot_id, self._publisher.histories, journal_path, self.describe)
        stack.callback(Replay(context, settings.publish, replayer, health).close)
        stack.callback(Heart(self._publisher, settings.publish.heartbeat_ms, self.describe, health).close)
        return Outlets(self._publisher, self._journal, self._images)

    def _open_images(self, stack: ExitStack) -> Images | None:
        if self._settings.images.save == "none":
            return None
        folder: Path = self._settings.state_dir / "rejects"
        images = Images(folder, self._settings.images.quota_mb, self._health)
        stack.callback(images.close)
        return images

    def _start_cameras(self, outlets: Outlets) -> None:
        for lane in self._lanes:
            lane.start(self._settings.station, self.boot_id, outlets)
        wait_for_frames(self._lanes, FIRST_FRAME_S, lambda: self._signals.stop)

    def _report_ready(self) -> None:
        self._state = "ready"
        notify("READY=1", f"STATUS=inspecting with {len(self._lanes)} camera(s)")
        publish = self._settings.publish
        log.info(
            self._state_now(), verdicts=publish.verdicts, replay=publish.replay, cameras=len(self._lanes)
        )

    def _watch(self) -> None:
        """One round of the main loop."""
        for lane in self._lanes:
            lane.poll()
        if self._signals.reload and not self._reloading:
            self._signals.reload, self._reloading = False, True
            self._reloader = spawn("reload", self._reload, self._health, watched=False)
        if self._health.failure is not None:
            raise InspectordError(f"{self._health.failure}; see the log above, then start again")
        self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        if time.monotonic() - self._fed_s < 1.0:
            return
        self._fed_s = time.monotonic()
        stale = self._health.stale(STALE_S)
        if stale:
            log.error("threads are stuck, the watchdog is not fed", threads=stale)
        else:
            notify("WATCHDOG=1", f"STATUS={self._state_now()}, {self._totals()}")

    def _reload(self) -> None:
        """In a thread of its own: cameras go on with the old recipes meanwhile."""
        try:
            for lane in self._lanes:
                lane.reload()
        finally:
            self._reloading = False

    def _finish(self) -> None:
        """Comes first at the end: no more frames, and verdicts for those already in the rings."""
        self._state = "stopping"
        notify("STOPPING=1")
        for lane in self._lanes:
            lane.stop()
        if self._reloader is not None:
            # A thread that is still compiling must not meet the end of the interpreter.
            self._reloader.join(RELOAD_S)

    def _state_now(self) -> str:
        if self._state == "ready" and any(lane.needs_help for lane in self._lanes):
            return "degraded"
        if self._state == "ready" and (self._journal.failing or self._health.stale(STALE_S)):
            return "degraded"
        return self._state

    def _totals(self) -> dict[str, int]:
        names = ("verdicts", "passed", "rejected", "not_inspected")
        return {name: sum(lane.totals.get(name, 0) for lane in self._lanes) for name in names}

    def describe(self) -> dict[str, Any]:
        """The heartbeat's content, also the answer to `inspectord status`."""
        images = self._images
        return {
            "schema": HEARTBEAT_SCHEMA,
            "station": self._settings.station,
            "boot_id": self.boot_id,
            "version": __version__,
            "state": self._state_now(),
            "uptime_s": round(time.monotonic() - self._began_s, 1),
            "heartbeat_ms": self._settings.publish.heartbeat_ms,
            "subscriptions": self._publisher.subscriptions,
            "send_errors": self._publisher.send_errors,
            "journal_backlog": self._journal.backlog,
            "journal_dropped": self._journal.dropped,
            "images_backlog": images.backlog if images else 0,
            "images_dropped": images.dropped if images else 0,
            "cameras": {lane.name: lane.describe() for lane in self._lanes},
        }


def _tune_process() -> None:
    # A thread back from inference waits for the interpreter's lock up to one interval; the default is 5 ms.
    sys.setswitchinterval(0.0005)
    cv2.setNumThreads(1)  # the cores belong to inference


def run_daemon(settings: Settings) -> int:
    """Run to the end; the exit code. Raises InspectordError for all that a user can mend."""
    try:
        Daemon(settings).run()
    except InspectordError as error:
        if examine.left_behind:
            print(f"inspectord: {error}", file=sys.stderr)
            _leave(error.exit_code)
        raise
    if examine.left_behind:
        _leave(0)
    return 0


def _leave(exit_code: int) -> None:
    """Exit without taking anything apart: destroying a hung model would wait for it for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
