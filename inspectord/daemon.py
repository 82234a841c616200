"""The daemon's life: start up, run, reload, shut down. Nothing is inspected before every recipe is proven."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import structlog
import zmq

from inspectord import __version__
from inspectord.errors import InspectordError
from inspectord.filelock import FileLock
from inspectord.health import Health, notify, spawn
from inspectord.images import Images
from inspectord.inspect import left_behind
from inspectord.journal import Journal
from inspectord.lane import Lane, wait_for_frames
from inspectord.last_good import start_with
from inspectord.logs import LINES
from inspectord.pauses import Pauses
from inspectord.prepare import threads_of
from inspectord.process import Signals, end_messaging, feed_period_s, leave, tune_process
from inspectord.publish import Heart, Publisher
from inspectord.replay import Replay, Replayer
from inspectord.report import Report
from inspectord.settings import Settings
from inspectord.station import Outlets
from inspectord.zap import Gate

POLL_S = 0.05
FIRST_FRAME_S = 10.0  # READY waits so long for cameras; one dead camera must not hold up the others
RELOAD_S = 5.0  # at shutdown, for a reload under way
log = structlog.get_logger()


class Daemon:
    """Run once; everything opened is closed again, in reverse order, also after a failed start."""

    def __init__(self, settings: Settings) -> None:
        self.boot_id = uuid.uuid4().hex
        self._settings = settings
        self._health = Health()
        self._signals = Signals()
        self._lanes: list[Lane] = []
        self._reloading = False
        self._reloader: threading.Thread | None = None
        self._pauses = Pauses(lambda: all(lane.idle for lane in self._lanes))
        self._feed_s = feed_period_s()
        self._fed_s = 0.0

    def run(self) -> None:
        """Until SIGTERM, SIGINT or the end of all sources. Raises InspectordError where it can't go on."""
        with ExitStack() as stack:
            self._start(stack)
            while not self._signals.stop and not all(lane.ended for lane in self._lanes):
                self._watch()
                time.sleep(POLL_S)
        log.info("stopped", boot_id=self.boot_id, **self._report.totals)

    def _start(self, stack: ExitStack) -> None:
        log.info("starting", version=__version__, boot_id=self.boot_id, station=self._settings.station)
        tune_process()
        stack.callback(self._end_reload)
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
            inspector, rolled_back = start_with(camera, self._settings)
            lane = Lane(camera, self._settings, inspector, self._health, rolled_back)
            stack.callback(lane.close)
            self._lanes.append(lane)
        stack.callback(self._pauses.close)
        self._pauses.start()

    def _open_outlets(self, stack: ExitStack) -> Outlets:
        settings, health = self._settings, self._health
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(end_messaging, context)
        names = [lane.name for lane in self._lanes]
        largest_px = max(lane.frame_px for lane in self._lanes)
        gate = Gate(context, settings.security, settings.publish, health, largest_px)
        stack.callback(gate.close)
        publisher = Publisher(context, settings.publish, names, gate)
        stack.callback(publisher.close)
        journal = Journal(
            settings.state_dir / "journal.sqlite",
            settings.journal.quota_mb,
            health,
            keep_days=settings.journal.keep_days,
            before_publish=settings.journal.durability == "before_publish",
        )
        stack.callback(journal.close)
        outlets = Outlets(publisher, journal, self._open_images(stack))
        self._report = Report(settings, self.boot_id, self._lanes, outlets, gate, health, self._pauses)
        replayer = Replayer(self.boot_id, publisher.histories, journal.path, self._report.table)
        stack.callback(Replay(context, settings.publish, replayer, gate, health).close)
        stack.callback(Heart(publisher, settings.publish.heartbeat_ms, self._report.table, health).close)
        return outlets

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
        self._report.phase = "ready"
        notify("READY=1", f"STATUS=inspecting with {len(self._lanes)} camera(s)")
        publish = self._settings.publish
        log.info(
            self._report.state, verdicts=publish.verdicts, replay=publish.replay, cameras=len(self._lanes)
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
        self._pauses.poll()
        self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        if time.monotonic() - self._fed_s < self._feed_s:
            return
        self._fed_s = time.monotonic()
        stuck = self._health.stuck()
        if stuck:
            log.error("threads are stuck, the watchdog is not fed", threads=stuck)
        else:
            notify("WATCHDOG=1", f"STATUS={self._report.state}, {self._report.totals}")

    def _reload(self) -> None:
        """In a thread of its own: cameras go on with the old recipes meanwhile."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            for lane in self._lanes:
                lane.reload()
        finally:
            if self._report.phase == "ready":
                notify("READY=1")
            self._reloading = False

    def _finish(self) -> None:
        """Comes first at the end: no more frames, and verdicts for those already in the rings."""
        self._report.phase = "stopping"
        notify("STOPPING=1")
        for lane in self._lanes:
            lane.ask_to_stop()
        for lane in self._lanes:
            lane.stop()

    def _end_reload(self) -> None:
        """Comes last: a thread that is still compiling must not meet the end of the interpreter."""
        if self._reloader is not None:
            self._reloader.join(RELOAD_S)
            if self._reloader.is_alive():
                left_behind.append(None)


def run_daemon(settings: Settings) -> int:
    """Run to the end; the exit code. Raises InspectordError for all that a user can mend."""
    faulthandler.enable()  # a watchdog's SIGABRT then leaves every thread's stack in the log
    try:
        Daemon(settings).run()
    except InspectordError as error:
        LINES.drain()
        if left_behind:
            print(f"inspectord: {error}", file=sys.stderr)
            leave(error.exit_code)
        raise
    LINES.drain()
    if left_behind:
        leave(0)
    return 0
