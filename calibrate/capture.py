"""calibrate capture: known-good frames from any source into a run folder, as the recipe will see them.

RUN/frames/000001.png ...   the frames, without loss
RUN/frames.csv              one row a trigger, kept or not: file, status, part, frame and trigger ids
RUN/run.toml                source, time, shape, counts, versions, note; written at the end, however that came
"""

from __future__ import annotations

import csv
import importlib.metadata
import logging
import os
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import tomli_w

from calibrate.progress import Progress
from inspectord import __version__
from inspectord.errors import SourceError, StateError
from inspectord.frame import FrameHeader, FrameStatus, Pixels
from inspectord.settings import Source
from inspectord.sources import FrameSource, open_source

SCHEMA = 1
COLUMNS = ("file", "status", "frame_id", "trigger_id", "encoder", "part_id", "exposed_ns", "fetched_ns")
FETCH_S = 0.2  # longest wait before Ctrl-C and the time limit are looked at
PACKAGES = ("numpy", "opencv-python-headless", "harvesters", "genicam")


@dataclass(frozen=True)
class Wanted:
    """What to grab, and where to."""

    run: Path
    source: Source
    frames: int
    wait_s: float = 30.0  # without a usable frame: give up
    note: str = ""


@dataclass
class Captured:
    """What came; counts holds the triggers without a usable frame by status."""

    run: Path
    kept: int = 0
    shape: tuple[int, ...] = ()
    counts: Counter[FrameStatus] = field(default_factory=Counter)
    ended: str = ""  # why it ended, in plain words
    interrupted: bool = False

    def kept_words(self) -> str:
        """For the end of an error: what there is all the same."""
        return f"; frames kept in {self.run}: {self.kept}" if self.kept else ""

    def unusable(self) -> str:
        """'2 lost, 1 incomplete', empty where every trigger gave a frame."""
        found = sorted(self.counts.items())
        return ", ".join(f"{count} {_key(status).replace('_', ' ')}" for status, count in found)


class RunFolder:
    """The folder being filled; made here and never before, and gone again where nothing was kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        """Raises StateError where there is something already, or nothing can be written."""
        if os.path.lexists(self.path):
            raise StateError(
                f"{self.path} exists already, and a capture overwrites nothing; give another folder"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
            (self.path / "frames").mkdir()
            self._file = (self.path / "frames.csv").open("x", newline="", encoding="utf-8")
        except OSError as error:
            raise StateError(f"can't write {self.path}: {error.strerror}; give another folder") from error
        self._rows = csv.writer(self._file)
        self._rows.writerow(COLUMNS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not any((self.path / "frames").iterdir()):
            (self.path / "frames").rmdir()
            (self.path / "frames.csv").unlink()
            self.path.rmdir()

    def keep(self, number: int, header: FrameHeader, pixels: Pixels) -> None:
        """Write one frame. Raises StateError where the disk takes no more; no half file remains."""
        path = self.path / "frames" / f"{number:06d}.png"
        _, png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        try:
            path.write_bytes(png.tobytes())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StateError(f"can't write {path}: {error.strerror}; free some disk") from error
        self.enter(header, f"frames/{path.name}")

    def enter(self, header: FrameHeader, file: str = "") -> None:
        """One row for a trigger; flushed, so that it survives whatever comes."""
        ids = (header.frame_id, header.trigger_id, header.encoder, header.part_id)
        self._rows.writerow((file, _key(header.status), *ids, header.exposed_ns, header.fetched_ns))
        self._file.flush()


def capture(wanted: Wanted, progress: Progress) -> Captured:
    """Grab frames until there are enough, the source ends, or Ctrl-C; what was grabbed stays, come what may.

    Raises StateError for a run folder that exists or can't be written, SourceError for a source that can't
    be had, is lost, or gives no usable frame within wait_s.
    """
    captured, began = Captured(wanted.run), datetime.now(UTC).replace(microsecond=0)
    with RunFolder(wanted.run) as folder, _stopping_on_interrupt() as stopping, _warnings_to(progress):
        try:
            with open_source(wanted.source, None) as source:
                if source.waits_for_trigger:
                    progress.note(f"armed; waiting up to {wanted.wait_s:g} s for each trigger")
                frames = _frames(source, wanted, captured, folder, stopping)
                for header, pixels in progress.track(frames, "grabbing frames", wanted.frames):
                    folder.keep(captured.kept + 1, header, pixels)
                    captured.kept, captured.shape = captured.kept + 1, pixels.shape
            if not captured.kept and not captured.interrupted:
                raise SourceError(f"the source gave no usable frame ({captured.unusable() or 'it is empty'})")
        except (SourceError, StateError) as error:
            captured.ended = str(error)
            raise type(error)(f"{error}{captured.kept_words()}") from error
        finally:
            if captured.kept:
                _write_toml(wanted, captured, began)
    return captured


def _frames(
    source: FrameSource, wanted: Wanted, captured: Captured, folder: RunFolder, stopping: threading.Event
) -> Iterator[tuple[FrameHeader, Pixels]]:
    """Usable frames; the others are counted and entered. Says in captured why there are no more."""
    usable_s = time.monotonic()
    while captured.kept < wanted.frames:
        if stopping.is_set():
            captured.interrupted, captured.ended = True, "interrupted"
            return
        item = source.next(FETCH_S)
        if item is not None and item[1] is not None:
            yield item[0], item[1]
            usable_s = time.monotonic()
        elif item is not None:
            captured.counts[item[0].status] += 1
            folder.enter(item[0])
        elif source.ended:
            captured.ended = "the source has no more frames"
            return
        if time.monotonic() - usable_s > wanted.wait_s:
            raise SourceError(_silence(source, wanted, captured))
    captured.ended = "all frames wanted are here"


def _silence(source: FrameSource, wanted: Wanted, captured: Captured) -> str:
    came = f" ({captured.unusable()})" if captured.counts else ""
    check = "start the line and check the trigger" if source.waits_for_trigger else "check the camera's link"
    return f"no usable frame for {wanted.wait_s:g} s{came}; {check}, or wait longer with --wait"


@contextmanager
def _stopping_on_interrupt() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, so that none falls between a frame and its row; a second one ends at once."""
    stopping = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _warnings_to(progress: Progress) -> Iterator[None]:
    """What the sources warn of, such as the name of an unreadable file, as the operator's notes."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            progress.note(f"warning: {record.getMessage()}")

    log, handler = logging.getLogger("inspectord"), Notes(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _write_toml(wanted: Wanted, captured: Captured, began: datetime) -> None:
    height, width, channels = captured.shape
    table: dict[str, Any] = {
        "schema_version": SCHEMA,
        "began": began,
        "note": wanted.note,
        "ended": captured.ended or "cut short",
        "frames": {
            "kept": captured.kept,
            "wanted": wanted.frames,
            **{_key(status): captured.counts[status] for status in FrameStatus if status != FrameStatus.OK},
        },
        "shape": {"width": width, "height": height, "channels": channels},
        "source": wanted.source.model_dump(mode="json", exclude_none=True),
        "software": {"python": platform.python_version(), "inspectord": __version__, **_versions()},
    }
    (wanted.run / "run.toml").write_text(tomli_w.dumps(table), encoding="utf-8")


def _versions() -> dict[str, str]:
    installed = {item.name: item.version for item in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def _key(status: FrameStatus) -> str:
    return status.name.lower()
