"""In the camera process of a real GenTL producer: calls fail on order, and frames show the line's parts.

Every buffer that viky.cti really fills is one exposure ("shot") with the next part number. Its pixels, ids,
size, format and times are then as ordered; the product reads them by the same properties as a raw buffer's.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np
from genicam import gentl

from injected import orders, parts

MONO8, RGB8, COORD3D = 0x01080001, 0x02180014, 0x023000C0

ERRORS = {
    "AccessDenied": gentl.AccessDeniedException,
    "ResourceInUse": gentl.ResourceInUseException,
    "InvalidHandle": gentl.InvalidHandleException,
    "IO": gentl.IoException,
    "Error": gentl.ErrorException,
    "NotInitialized": gentl.NotInitializedException,
    "RuntimeError": RuntimeError,
    "ValueError": ValueError,
}


class Camera:
    """What the one camera of this process does; set by begin() before the source opens."""

    name = ""
    number = 0
    shot = 0  # of the last exposure
    frame_id = 0
    fetches = 0
    wraps = False
    idle = False
    log: orders.Log
    again: ClassVar[deque[Any]] = deque()


def begin(name: str, number: int, first: int) -> None:
    Camera.name, Camera.number, Camera.shot = name, number, first - 1
    Camera.log = orders.Log("shots", name)


def wrap(module: Any) -> None:
    """Wrap Harvester and ImageAcquirer of harvesters.core."""
    for name in ("add_file", "update", "create", "reset"):
        _guard(module.Harvester, name)
    for name in ("start", "stop", "destroy", "add_callback"):
        _guard(module.ImageAcquirer, name)
    _guard_setter(module.ImageAcquirer, "num_buffers")
    _guard_getter(module.ImageAcquirer, "remote_device")
    real_list = module.Harvester.device_info_list
    module.Harvester.device_info_list = property(
        lambda self: [] if orders.take(Camera.name, "gone") else real_list.fget(self)
    )
    module.ImageAcquirer.try_fetch = _try_fetch(module.ImageAcquirer.try_fetch)


def _fail(point: str) -> None:
    order = orders.take(Camera.name, point)
    if order is not None:
        from injected.camera import fail

        if order["action"] == "raise":
            raise ERRORS[order.get("kind", "Error")]("fault: " + point)
        fail(order)


def _guard(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    def guarded(self: Any, *arguments: Any, **more: Any) -> Any:
        _fail(name)
        return real(self, *arguments, **more)

    setattr(owner, name, guarded)


def _guard_setter(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    def setter(self: Any, value: Any) -> None:
        _fail(name)
        real.fset(self, value)

    setattr(owner, name, property(real.fget, setter))


def _guard_getter(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    def getter(self: Any) -> Any:
        _fail(name)
        return real.fget(self)

    setattr(owner, name, property(getter))


def _try_fetch(real: Any) -> Any:
    def try_fetch(self: Any, *, timeout: float, is_raw: bool = False) -> Any:
        _fail("try_fetch")
        if Camera.again:
            return Camera.again.popleft()
        if orders.take(Camera.name, "gone"):
            orders.wait_ms(timeout * 1000)
            return None
        _idle(self)
        buffer = real(self, timeout=timeout, is_raw=is_raw)
        Camera.fetches += 1
        return None if buffer is None else _developed(self, buffer)

    return try_fetch


def _idle(acquirer: Any) -> None:
    """While ordered, the camera exposes nothing, as one that waits for triggers."""
    idle = orders.take(Camera.name, "idle") is not None
    if idle is not Camera.idle:
        Camera.idle = idle
        nodes = acquirer.remote_device.node_map
        (nodes.AcquisitionStop if idle else nodes.AcquisitionStart).execute()


def _developed(acquirer: Any, buffer: Any) -> Any:
    """The shot that a filled buffer stands for, bent as ordered; None for one that comes incomplete."""
    order = orders.take(Camera.name, "shot") or {"action": "plain"}
    action, changes = order["action"], {}
    match action:
        case "gap":
            for _ in range(order["count"]):
                _expose("LOST")
        case "ids_from":
            Camera.frame_id, Camera.wraps = order["frame_id"] - 1, order.get("wraps", False)
        case "incomplete":
            _expose("INCOMPLETE")
            buffer.parent.queue_buffer(buffer)
            acquirer._emit_callbacks(acquirer.Events.INCOMPLETE_BUFFER)
            return None
        case "wrong_size":
            changes = {"width": 48, "height": 32}
        case "wrong_format":
            changes = {"pixel_format": order.get("format", RGB8)}
        case "short":
            changes = {"delivered_image_height": 10}
        case "no_image":
            changes = {"payload_type": 2}
        case "cut":
            changes = {"raw_buffer": b"\x80" * 100}
        case "exposed":  # None: the producer has no timestamps, and says so by an exception
            changes = {"timestamp_ns": order["ns"]}
        case "queue_raises":
            changes = {"queue_error": True}
    _expose(FATES.get(action, "OK"))
    shot = Shot(buffer, changes)
    if action == "twice":
        # Its copy arrives behind the queued original: harvesters would hand it out as one more buffer.
        Camera.again.append(Shot(None, {"frame_id": shot.frame_id, "raw_buffer": shot.raw_buffer}))
    return shot


FATES = dict.fromkeys(("wrong_size", "wrong_format", "no_image", "cut"), "WRONG_SHAPE") | {
    "short": "INCOMPLETE"
}


def _expose(fate: str) -> None:
    Camera.shot += 1
    Camera.frame_id += 1
    if Camera.wraps and Camera.frame_id > 0xFFFF:
        Camera.frame_id = 1
    ids = {"number": Camera.shot, "frame_id": Camera.frame_id, "fetch": Camera.fetches}
    Camera.log.write(event="shot", fate=fate, code=parts.code_of(Camera.number, Camera.shot), **ids)


class Shot:
    """A raw buffer as the product reads it; queueing it queues the real one."""

    def __init__(self, buffer: Any, changes: dict[str, Any]) -> None:
        height, width, _ = parts.SHAPE
        self._buffer, self._queue_error = buffer, changes.pop("queue_error", False)
        self.frame_id = Camera.frame_id
        self.width, self.height, self.delivered_image_height = width, height, height
        self.pixel_format, self.payload_type = MONO8, 1
        self.image_offset = self.padding_x = 0
        self.raw_buffer = parts.draw(Camera.number, Camera.shot).tobytes()
        self._time_ns = changes.pop("timestamp_ns", 1_000_000 * Camera.shot)
        self.__dict__.update(changes)
        if self.width * self.height != width * height:
            self.raw_buffer = np.full((self.height, self.width), 128, np.uint8).tobytes()

    @property
    def timestamp_ns(self) -> int:
        if self._time_ns is None:
            raise gentl.NotAvailableException("fault: no timestamp")
        return self._time_ns

    @property
    def parent(self) -> Shot:
        return self

    def queue_buffer(self, _: Any) -> None:
        if self._buffer is not None:
            self._buffer.parent.queue_buffer(self._buffer)
        if self._queue_error:
            raise gentl.ResourceInUseException("fault: queue_buffer")
