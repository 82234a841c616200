"""Camera features (GenICam nodes): set before the start, in order, and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from inspectord.errors import SourceError
from inspectord.settings import GenicamSource, Trigger

Value: TypeAlias = bool | int | float | str

# Cameras round exposure or gain to their own steps; more than this is another value.
FLOAT_TOLERANCE = 0.005
CHUNKS = ("EncoderValue", "CounterValue", "FrameID", "Timestamp")


def configure(nodes: Any, source: GenicamSource) -> None:
    """Pixel format, the user's features, trigger and chunks of a node map.

    Raises SourceError with name, wanted and got where the camera does not take a value.
    """
    if source.pixel_format is not None:
        set_feature(nodes, "PixelFormat", source.pixel_format)
    if "AcquisitionMode" not in source.features:
        _set_if_there(nodes, "AcquisitionMode", "Continuous")
    set_features(nodes, source.features)
    if source.trigger is None:
        _run_freely(nodes)
    else:
        _arm(nodes, source.trigger)
    if source.chunks:
        _enable_chunks(nodes)


def set_features(nodes: Any, features: Mapping[str, Value]) -> None:
    for name, wanted in features.items():
        set_feature(nodes, name, wanted)


def set_feature(nodes: Any, name: str, wanted: Value) -> None:
    """Set one feature and read it back; true executes a command."""
    node = node_of(nodes, name)
    if node is None:
        raise SourceError(
            f"the camera has no feature {name}; remove it or see the camera's manual for its name"
        )
    try:
        if hasattr(node, "execute"):
            node.execute()
            return
        node.value = wanted
        got = node.value
    except Exception as error:  # the binding raises its own kinds, SWIG's and Python's
        raise SourceError(f"the camera refuses {name} = {wanted!r}: {_first_line(error)}") from error
    if not _same(wanted, got):
        raise SourceError(
            f"the camera does not keep {name}: wanted {wanted!r}, got {got!r}; set a value it has"
        )


def node_of(nodes: Any, name: str) -> Any:
    """The node, or None where the camera has none of that name."""
    try:
        return getattr(nodes, name)
    except Exception:
        return None


def read_int(nodes: Any, name: str) -> int:
    """A node's whole number, or -1 where the camera has or sends none."""
    try:
        return int(getattr(nodes, name).value)
    except Exception:
        return -1


def _arm(nodes: Any, trigger: Trigger) -> None:
    """In SFNC's order: the selector first, as each trigger has mode, source and activation of its own."""
    set_feature(nodes, "TriggerSelector", trigger.selector)
    set_feature(nodes, "TriggerMode", "On")
    set_feature(nodes, "TriggerSource", trigger.source)
    if trigger.activation is not None and trigger.source != "Software":
        set_feature(nodes, "TriggerActivation", trigger.activation)
    if trigger.source == "Software" and trigger.software_rate_hz is None:
        raise SourceError("trigger.source is Software, but nobody triggers; set trigger.software_rate_hz")


def _run_freely(nodes: Any) -> None:
    """A camera may remember a trigger mode from other software, and would then wait for ever."""
    if _set_if_there(nodes, "TriggerSelector", "FrameStart"):
        _set_if_there(nodes, "TriggerMode", "Off")


def _enable_chunks(nodes: Any) -> None:
    set_feature(nodes, "ChunkModeActive", True)
    for chunk in CHUNKS:
        if _set_if_there(nodes, "ChunkSelector", chunk):
            _set_if_there(nodes, "ChunkEnable", True)


def _set_if_there(nodes: Any, name: str, value: Value) -> bool:
    try:
        set_feature(nodes, name, value)
    except SourceError:
        return False
    return True


def _same(wanted: Value, got: Any) -> bool:
    if isinstance(wanted, float) or isinstance(got, float):
        return math.isclose(float(wanted), float(got), rel_tol=FLOAT_TOLERANCE)
    return bool(wanted == got)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
