"""Rejected frames on disk with an overlay of heat map and boxes, inside a quota, written off the hot path."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import structlog

from inspectord.errors import StateError
from inspectord.frame import Pixels
from inspectord.health import Health, spawn
from inspectord.image_files import ImageFiles, NoRoomError, prove_writable
from inspectord.inspect import Floats
from inspectord.messages import VerdictMessage, to_table
from inspectord.recipe import RecipeToml

QUEUE_DEPTH, QUEUE_BYTES = 16, 128 << 20  # frames held in memory at most
IDLE_S = 0.5
STALLED_S = 2.0
RED, WHITE = (40, 40, 255), (255, 255, 255)
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RejectedFrame:
    message: VerdictMessage
    pixels: Pixels  # (height, width, channels), a copy
    anomaly_map: Floats  # (rows, columns), a copy
    spec: RecipeToml


class Images:
    """One thread that writes; put() never waits, and counts what it has to drop.

    Raises StateError where the folder can't be written at the start. Later on `failing` says why images are
    not getting to the disk, until they do again.
    """

    def __init__(self, folder: Path, quota_mb: int, health: Health) -> None:
        self.dropped = 0
        self.written = 0
        self._folder, self._quota_bytes, self._health = folder, quota_mb << 20, health
        self._queue: queue.Queue[RejectedFrame | None] = queue.Queue(QUEUE_DEPTH)
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._failing: str | None = None
        self._calling_since_s: float | None = None
        _prove(folder)
        self._thread = spawn("images", self._run, health)

    @property
    def backlog(self) -> int:
        return self._queue.qsize()

    @property
    def failing(self) -> str | None:
        """Why images are not saved at present."""
        since_s = self._calling_since_s
        stalled_s = time.monotonic() - since_s if since_s is not None else 0.0
        if stalled_s > STALLED_S:
            return f"the disk has not answered for {stalled_s:.0f} s"
        return self._failing

    def put(self, rejected: RejectedFrame) -> None:
        size = rejected.pixels.nbytes + rejected.anomaly_map.nbytes
        with self._lock:
            has_room = not self._queued_bytes or self._queued_bytes + size <= QUEUE_BYTES
            if has_room and not self._queue.full():
                self._queued_bytes += size
                self._queue.put_nowait(rejected)
                return
        self._drop(rejected.message, "more rejects than the disk takes")

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued, as far as timeout_s allows."""
        end_s = time.monotonic() + timeout_s
        with suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
            self._thread.join(max(0.0, end_s - time.monotonic()))
        if self._thread.is_alive():
            log.error("reject images not written", backlog=self.backlog, reason=self.failing)

    def _run(self) -> None:
        # Encoding competes with inference for the cores; the line's verdicts come first.
        os.setpriority(os.PRIO_PROCESS, 0, 10)
        files = ImageFiles(self._folder, self._quota_bytes)
        self._attempt(files.look)
        while True:
            self._health.beat("images")
            try:
                rejected = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                if self._failing is not None:
                    self._attempt(files.probe)  # rejects may be rare; the disk is asked without one
                continue
            if rejected is None:
                return
            with self._lock:
                self._queued_bytes -= rejected.pixels.nbytes + rejected.anomaly_map.nbytes
            self._save(rejected, files)

    def _save(self, rejected: RejectedFrame, files: ImageFiles) -> None:
        if self._attempt(lambda: files.add(_files_of(rejected))):
            self.written += 1
        else:
            self._drop(rejected.message, self._failing or "")

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Whether it was done; if not, `failing` says why."""
        try:
            with self._disk_call():
                work()
        except Exception as error:  # memory for a huge overlay, say: a picture must never stop the line
            if not isinstance(error, (OSError, NoRoomError)):
                log.exception("a reject image could not be made")
            self._failing = str(error) or type(error).__name__
            return False
        if self._failing is not None:
            log.warning("reject images are saved again", dropped=self.dropped)
            self._failing = None
        return True

    @contextmanager
    def _disk_call(self) -> Iterator[None]:
        """A disk that stalls is told by `failing`: a watchdog's restart would stop the line, not mend it."""
        self._calling_since_s = time.monotonic()
        self._health.excuse("images")
        try:
            yield
        finally:
            self._calling_since_s = None
            self._health.beat("images")

    def _drop(self, message: VerdictMessage, reason: str) -> None:
        if self.dropped % 1000 == 0:  # the first, and then few: a log on a full disk must not fill it
            log.error(
                "reject image not saved",
                camera=message.camera,
                seq=message.seq,
                reason=reason,
                dropped=self.dropped + 1,
            )
        self.dropped += 1


def overlay(rejected: RejectedFrame) -> Pixels:
    """The frame as BGR of shape (height, width, 3) with heat over the region, boxes and a caption.

    Heat has a fixed scale: nothing at zero, full red at twice the limit; never stretched to the image.
    """
    message, spec = rejected.message, rejected.spec
    canvas = _as_bgr(rejected.pixels)
    left, top, width, height = spec.region.roi
    region = canvas[top : top + height, left : left + width]
    region[:] = _heated(region, rejected.anomaly_map, spec)
    thick = max(1, round(min(canvas.shape[:2]) / 300))
    for x, y, box_width, box_height in message.boxes:
        cv2.rectangle(canvas, (x, y), (x + box_width - 1, y + box_height - 1), WHITE, thick + 2)
        cv2.rectangle(canvas, (x, y), (x + box_width - 1, y + box_height - 1), RED, thick)
    return _captioned(canvas, f"{message.verdict} {message.score:.4g} > {message.limit:.4g}")


def _heated(region: Pixels, anomaly_map: Floats, spec: RecipeToml) -> Pixels:
    limit = spec.limits.score
    heat = np.nan_to_num(anomaly_map / (2 * limit) if limit > 0 else anomaly_map > limit)
    cell = spec.tiles.cell_px
    rows, columns = heat.shape
    size = (max(1, round(columns * cell)), max(1, round(rows * cell)))
    grown = cv2.resize(np.clip(heat, 0, 1).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    height, width = region.shape[:2]
    grown = cv2.copyMakeBorder(
        grown, 0, max(0, height - size[1]), 0, max(0, width - size[0]), cv2.BORDER_REPLICATE
    )[:height, :width]
    colours = cv2.applyColorMap((grown * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = np.clip(grown * 1.2, 0, 0.6)[..., None]
    return np.asarray(region * (1 - weight) + colours * weight, np.uint8)


def _captioned(canvas: Pixels, text: str) -> Pixels:
    scale = max(0.35, canvas.shape[1] / 900)
    strip = np.zeros((round(34 * scale) + 4, canvas.shape[1], 3), np.uint8)
    at = (round(8 * scale), strip.shape[0] - round(10 * scale))
    cv2.putText(strip, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, WHITE, max(1, round(scale)), cv2.LINE_AA)
    return np.vstack([canvas, strip])


def _as_bgr(pixels: Pixels) -> Pixels:
    grey = pixels.shape[2] == 1
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if grey else pixels.copy(), np.uint8)


def _files_of(rejected: RejectedFrame) -> list[tuple[str, bytes]]:
    message = rejected.message
    stem = f"{message.camera}/{message.decided_at[:10]}/{message.boot_id}_{message.seq:08d}"
    frame, shown = rejected.pixels, overlay(rejected)
    # PNG level 1: 87 ms for 5 megapixels on the reference machine; level 6 takes 343 ms to save 6 %.
    return [
        (f"{stem}_frame.png", _encoded(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])),
        (f"{stem}_overlay.jpg", _encoded(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 90])),
        (f"{stem}_verdict.json", json.dumps(to_table(message), indent=2).encode()),
    ]


def _encoded(kind: str, pixels: Pixels, parameters: list[int]) -> bytes:
    return bytes(cv2.imencode(kind, pixels, parameters)[1])


def _prove(folder: Path) -> None:
    try:
        prove_writable(folder)
    except OSError as error:
        raise StateError(
            f"can't write to {folder} ({error.strerror}); check its owner and mount, change state_dir, "
            'or set images.save = "none"'
        ) from error
