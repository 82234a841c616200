"""A camera through harvesters: every trigger becomes a frame, or a header that says why there is none."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from itertools import zip_longest
from types import TracebackType
from typing import Any, Self

import numpy as np
from genicam import gentl
from harvesters.core import Callback
from harvesters.util.pfnc import dict_by_ints

from inspectord.errors import FrameError, SourceError
from inspectord.frame import FrameHeader, FrameStatus, Pixels
from inspectord.settings import GenicamSource
from inspectord.sources.base import Item, Pace, Shape, fitted, shape_of
from inspectord.sources.device import Device
from inspectord.sources.features import configure, node_of, read_int, set_feature
from inspectord.sources.frame_ids import FrameIds
from inspectord.sources.pixels import convert

log = logging.getLogger(__name__)

CHECK_S = 1.0  # between two questions after the device's access status
IMAGES = {1, 4}  # GenTL payload types: image, and image with chunk data


class GenicamFrames:
    """Raw GenTL buffers are read here, not harvesters' payloads, which expand some packed formats slowly
    or wrongly and keep line padding."""

    backpressure = False
    ended = False

    def __init__(self, source: GenicamSource, frame_shape: Shape | None) -> None:
        self._source = source
        self._shape = frame_shape
        rate_hz = source.trigger.software_rate_hz if source.trigger else None
        self._software_rate_hz = rate_hz if source.trigger and source.trigger.source == "Software" else None
        self.waits_for_trigger = source.trigger is not None and self._software_rate_hz is None
        self._ids = FrameIds()
        self._trigger_ids = FrameIds() if _counts_triggers(source) else None
        self._items: deque[Item] = deque()
        self._lost: SourceError | None = None
        self._last: Item | None = None
        self._triggers = 0

    def __enter__(self) -> Self:
        self._device = Device(self._source)
        try:
            configure(self._device.nodes, self._source)
            self._start()
        except BaseException:
            self._device.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device.close()

    def next(self, timeout_s: float) -> Item | None:
        """The next frame, or the header of one that was lost or came incomplete.

        Raises SourceError where the device went away or a free-running camera fell silent.
        """
        if not self._items and self._lost is None:
            self._fetch(timeout_s)
        if self._items:
            self._last_s = time.monotonic()
            return self._items.popleft()
        if self._lost is not None:
            raise self._lost
        self._check_alive()
        return None

    def _start(self) -> None:
        acquirer = self._device.acquirer
        acquirer.num_buffers = self._source.buffers
        _prefer_oldest_first(acquirer)
        acquirer.add_callback(acquirer.Events.INCOMPLETE_BUFFER, _OnIncomplete(self._add_incomplete))
        try:
            acquirer.start()
        except gentl.GenericException as error:
            raise SourceError(
                f"the camera does not start: {error}; check its settings and its link"
            ) from error
        self._begin()

    def _begin(self) -> None:
        self._last_s = self._checked_s = time.monotonic()
        self._pace = Pace(self._software_rate_hz) if self._software_rate_hz else None

    def _fetch(self, timeout_s: float) -> None:
        if self._pace is not None:
            if self._pace.left_s(self._triggers) <= 0:
                self._trigger()
            timeout_s = min(timeout_s, self._pace.left_s(self._triggers))
        try:
            # A timeout of 0 would wait for ever.
            buffer = self._device.acquirer.try_fetch(timeout=max(0.001, timeout_s), is_raw=True)
            if buffer is not None:
                try:
                    self._add(buffer)
                finally:
                    buffer.parent.queue_buffer(buffer)
        except gentl.GenericException as error:
            # Raised by next() once the frames that came before it are handed out.
            self._lost = SourceError(f"camera lost: {error}; check its power and link")

    def _trigger(self) -> None:
        self._triggers += 1
        set_feature(self._device.nodes, "TriggerSoftware", True)

    def _add(self, buffer: Any) -> None:
        """Enter a buffer's frame behind the headers of those lost before it; pixels are copied here."""
        header = self._header(buffer)
        item = self._read(buffer, header)
        if self._is_copy(item):
            log.warning("frame %d was delivered twice; its copy is left out", header.frame_id)
            return
        self._last = item
        frame_ids, trigger_ids = self._ids.lost_before(header.frame_id), self._missed_triggers(header)
        for frame_id, trigger_id in zip_longest(frame_ids, trigger_ids, fillvalue=-1):
            self._items.append((_faulty(FrameStatus.LOST, frame_id, trigger_id), None))
        self._items.append(item)

    def _is_copy(self, item: Item) -> bool:
        """The frame before, delivered again: one trigger, which must not get a second verdict.

        Id, time and pixels are the same; a new exposure has other noise, where it is not saturated or dark.
        """
        (header, pixels), (last, others) = item, self._last or (None, None)
        if last is None or (header.frame_id, header.exposed_ns) != (last.frame_id, last.exposed_ns):
            return False
        if not self._ids.counts and not header.exposed_ns:  # a producer that has neither
            return False
        if pixels is None or others is None:
            return pixels is others
        return np.array_equal(pixels, others)

    def _missed_triggers(self, header: FrameHeader) -> list[int]:
        """Those counted by the camera before this frame's that gave no frame, as those during an exposure."""
        if self._trigger_ids is None or header.trigger_id < 0:
            return []
        return self._trigger_ids.lost_before(header.trigger_id)

    def _add_incomplete(self) -> None:
        trigger_id = self._trigger_ids.skip_one() if self._trigger_ids else -1
        self._items.append((_faulty(FrameStatus.INCOMPLETE, self._ids.skip_one(), trigger_id), None))

    def _header(self, buffer: Any) -> FrameHeader:
        chunks, nodes = self._source.chunks, self._device.nodes
        return FrameHeader(
            FrameStatus.OK,
            frame_id=int(buffer.frame_id),
            trigger_id=read_int(nodes, "ChunkCounterValue") if chunks else -1,
            encoder=read_int(nodes, "ChunkEncoderValue") if chunks else -1,
            exposed_ns=_exposed_ns(buffer),
            fetched_ns=time.monotonic_ns(),
        )

    def _read(self, buffer: Any, header: FrameHeader) -> Item:
        if int(buffer.payload_type) not in IMAGES:
            log.warning(
                "payload type %s is no single image; set the camera to plain images", buffer.payload_type
            )
            return replace(header, status=FrameStatus.WRONG_SHAPE), None
        if _is_short(buffer):
            return replace(header, status=FrameStatus.INCOMPLETE), None
        try:
            pixels = _pixels(buffer, self._device.nodes)
        except FrameError as error:
            log.warning("%s", error)
            return replace(header, status=FrameStatus.WRONG_SHAPE), None
        self._shape = self._shape or shape_of(pixels)
        return fitted(header, pixels, self._shape)

    def _check_alive(self) -> None:
        now_s = time.monotonic()
        if now_s - self._checked_s >= CHECK_S:
            self._checked_s = now_s
            if self._device.is_gone():
                raise SourceError("camera lost: the device is no longer there; check its power and link")
        if not self.waits_for_trigger and now_s - self._last_s > self._silence_s():
            raise SourceError(
                f"camera lost: no frame for {now_s - self._last_s:.1f} s; check its link, or raise silent_s"
            )

    def _silence_s(self) -> float:
        period_s = 1 / self._software_rate_hz if self._software_rate_hz else 0.0
        return self._source.silent_s + period_s


class _OnIncomplete(Callback):  # type: ignore[misc]
    """harvesters queues an incomplete buffer itself and tells nobody but this callback."""

    def __init__(self, add: Any) -> None:
        self._add = add

    def emit(self, context: object = None) -> None:
        self._add()


def _counts_triggers(source: GenicamSource) -> bool:
    """The chunk counter's value is a trigger id whose gaps tell of missed triggers, not any other count."""
    counted = source.features.get("CounterEventSource")
    return source.chunks and source.trigger is not None and counted in (source.trigger.source, "FrameTrigger")


def _faulty(status: FrameStatus, frame_id: int, trigger_id: int) -> FrameHeader:
    return FrameHeader(status, frame_id, trigger_id, fetched_ns=time.monotonic_ns())


def _pixels(buffer: Any, nodes: Any) -> Pixels:
    pixel_format = dict_by_ints.get(int(_known(buffer, "pixel_format", 0))) or str(nodes.PixelFormat.value)
    data = np.frombuffer(buffer.raw_buffer, np.uint8)[int(_known(buffer, "image_offset", 0)) :]
    width, height = _known(buffer, "width", 0), _known(buffer, "height", 0)
    return convert(
        pixel_format,
        data,
        int(width or nodes.Width.value),
        int(height or nodes.Height.value),
        int(_known(buffer, "padding_x", 0)),
    )


def _is_short(buffer: Any) -> bool:
    """Fewer lines than the frame has; 0 stands for a producer that doesn't say."""
    delivered = _known(buffer, "delivered_image_height", 0)
    return bool(0 < delivered < _known(buffer, "height", 0))


def _exposed_ns(buffer: Any) -> int:
    return int(_known(buffer, "timestamp_ns", 0))


def _known(buffer: Any, name: str, default: int) -> Any:
    """A buffer's property, or default where the producer has none."""
    try:
        return getattr(buffer, name)
    except gentl.GenericException:
        return default


def _prefer_oldest_first(acquirer: Any) -> None:
    """Parts in the order of the line; producers without the node have that order anyway."""
    for stream in acquirer.data_streams:
        node = node_of(stream.node_map, "StreamBufferHandlingMode") if stream.node_map else None
        try:
            if node is not None:
                node.value = "OldestFirst"
        except Exception as error:
            log.warning("the producer refuses StreamBufferHandlingMode=OldestFirst: %s", error)
